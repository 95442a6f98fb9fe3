"""config.json and generation_config.json as GGUF metadata stand for them, for every architecture that is served.

Promises: what it returns means what llama.cpp means by the file; what it did not understand is refused by name. The
values are checked once more by the family that reads the config. Refuses to know weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.protocol.refusal import refuse
from hydra.store.files.directory import shown
from hydra.store.gguf.arch_keys import ArchKeys
from hydra.store.gguf.gguf_content import GgufContent
from hydra.store.gguf.gguf_metadata import MetaArray, Metadata
from hydra.store.gguf.gguf_rope import rope_parameters
from hydra.store.gguf.gguf_sampling import stored_sampling

WINDOW_MAX, LAYERS_MAX, WIDTH_MAX, HEADS_MAX, EXPERTS_MAX = 1 << 24, 1024, 1 << 20, 1024, 4096
CAP_MAX = 1e6
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
WIDE_GEMMAS = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale by their width instead of the head
GEMMA3_PERIOD = 6  # every sixth layer looks at everything
# Ends of a turn that files leave to their readers to find by their text.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "[EOT]", "<end_of_utterance>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
FOUND_WHOLE = (3, 4)  # types of tokens: control, and added ones

Config = dict[str, Any]


def architecture_of(metadata: Metadata) -> str:
    """Raises RefusalError unsupported for an architecture that is not served."""
    if metadata.text("general.type", "model") != "model":
        raise metadata.unsupported("general.type", "'model', a whole model,")
    name = metadata.text("general.architecture")
    if name not in _CONFIGS:
        raise metadata.unsupported("general.architecture", " or ".join(map(repr, _CONFIGS)))
    return name


def config_of(content: GgufContent) -> Config:
    """config.json. Raises RefusalError: bad_model, unsupported."""
    name = architecture_of(content.metadata)
    keys = ArchKeys(content, name)
    config = _common(keys) | _CONFIGS[name](keys)
    keys.refuse_the_unread()
    return config


def generation_of(metadata: Metadata, tokens: list[str], types: list[int]) -> Config:
    """generation_config.json: where an answer begins and ends, and how it is sampled."""
    ends = [metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    ids = {token: number for number, token in enumerate(tokens)}
    ends += [ids[text] for text in ENDS if text in ids and types[ids[text]] in FOUND_WHOLE]
    known = dict.fromkeys(end for end in ends if type(end) is int and 0 <= end < len(tokens))
    config: Config = {"eos_token_id": list(known), **stored_sampling(metadata)}
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return config | ({"bos_token_id": bos} if type(bos) is int and 0 <= bos < len(tokens) else {})


def _common(keys: ArchKeys) -> Config:
    """What every architecture has."""
    hidden = keys.integer("embedding_length", 1, WIDTH_MAX)
    heads = keys.integer("attention.head_count", 1, HEADS_MAX)
    head_dim = keys.integer("attention.key_length", 1, WIDTH_MAX, max(1, hidden // heads))
    if keys.integer("attention.value_length", 1, WIDTH_MAX, head_dim) != head_dim:
        raise keys.unsupported("attention.value_length", "the same as attention.key_length")
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length", 1, WIDTH_MAX),
        "num_hidden_layers": keys.integer("block_count", 1, LAYERS_MAX),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", 1, HEADS_MAX, heads),
        "head_dim": head_dim,
        "vocab_size": keys.content.shape(EMBEDDING)[0],
        "max_position_embeddings": keys.integer("context_length", 1, 1 << 24),
        "tie_word_embeddings": not keys.has_tensor(HEAD),
    }


def _rms(keys: ArchKeys) -> Config:
    return {"rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1.0)}


def _rope(keys: ArchKeys) -> Config:
    return {"rope_parameters": rope_parameters(keys, _common(keys)["head_dim"])}


def _named(architecture: str, model_type: str) -> Config:
    return {"architectures": [architecture], "model_type": model_type}


def _window(keys: ArchKeys) -> int | None:
    return keys.integer("attention.sliding_window", 0, WINDOW_MAX, 0) or None


def _llama(keys: ArchKeys) -> Config:
    """What llama.cpp calls llama: Llama, Mistral and Mixtral."""
    shared = _rms(keys) | _rope(keys) | {"hidden_act": "silu"}
    experts, window = keys.integer("expert_count", 0, EXPERTS_MAX, 0), _window(keys)
    if experts:
        used = keys.integer("expert_used_count", 1, experts)
        inner = keys.integer("expert_feed_forward_length", 1, WIDTH_MAX, _common(keys)["intermediate_size"])
        counts = {"num_local_experts": experts, "num_experts_per_tok": used, "intermediate_size": inner}
        return _named("MixtralForCausalLM", "mixtral") | shared | counts | {"sliding_window": window}
    if window is not None:
        return _named("MistralForCausalLM", "mistral") | shared | {"sliding_window": window}
    biases = {
        "attention_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": keys.has_tensor("blk.0.ffn_gate.bias"),
    }
    return _named("LlamaForCausalLM", "llama") | shared | biases


def _qwen2(keys: ArchKeys) -> Config:
    return _named("Qwen2ForCausalLM", "qwen2") | _rms(keys) | _rope(keys) | _qwen_window(keys)


def _qwen3(keys: ArchKeys) -> Config:
    biased = {"attention_bias": keys.has_tensor("blk.0.attn_q.bias")}
    return _named("Qwen3ForCausalLM", "qwen3") | _rms(keys) | _rope(keys) | _qwen_window(keys) | biased


def _qwen3moe(keys: ArchKeys) -> Config:
    experts = keys.integer("expert_count", 1, EXPERTS_MAX)
    n_layers = _common(keys)["num_hidden_layers"]
    counts = {
        "num_experts": experts,
        "num_experts_per_tok": keys.integer("expert_used_count", 1, experts),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length", 1, WIDTH_MAX),
        "norm_topk_prob": keys.boolean("expert_weights_norm", True),  # llama.cpp knows no other
        "mlp_only_layers": [layer for layer in range(n_layers) if keys.has_tensor(f"blk.{layer}.ffn_gate.weight")],
    }
    named = _named("Qwen3MoeForCausalLM", "qwen3_moe")
    biased = {"attention_bias": keys.has_tensor("blk.0.attn_q.bias")}
    return named | _rms(keys) | _rope(keys) | _qwen_window(keys) | biased | counts


def _qwen_window(keys: ArchKeys) -> Config:
    if _window(keys) is not None:
        raise keys.unsupported("attention.sliding_window", "0 with this architecture")
    return {"hidden_act": "silu", "use_sliding_window": False}


def _phi2(keys: ArchKeys) -> Config:
    eps = {"layer_norm_eps": keys.number("attention.layer_norm_epsilon", 1.0)}
    return _named("PhiForCausalLM", "phi") | eps | _rope(keys) | {"hidden_act": "gelu_new"}


def _phi3(keys: ArchKeys) -> Config:
    rope = rope_parameters(keys, _common(keys)["head_dim"])
    original = keys.integer("rope.scaling.original_context_length", 2, 1 << 24, 4096)
    config = {"rope_parameters": rope, "original_max_position_embeddings": original, "sliding_window": _window(keys)}
    return _named("Phi3ForCausalLM", "phi3") | _rms(keys) | config | {"hidden_act": "silu"}


def _gemma(keys: ArchKeys) -> Config:
    """Of both generations: which width the queries are scaled by is written nowhere."""
    common = _common(keys)
    wide = common["num_hidden_layers"] == WIDE_GEMMAS[keys.name]
    scalar = common["hidden_size"] / common["num_attention_heads"] if wide else common["head_dim"]
    if keys.has("attention.scale"):
        scalar = keys.number("attention.scale", CAP_MAX) ** -2
    return _rms(keys) | {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(keys: ArchKeys) -> Config:
    caps = {
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", CAP_MAX, 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", CAP_MAX, 30.0),
        "sliding_window": keys.integer("attention.sliding_window", 1, WINDOW_MAX),
    }
    return _named("Gemma2ForCausalLM", "gemma2") | _gemma(keys) | _rope(keys) | caps


def _gemma3(keys: ArchKeys) -> Config:
    config = _named("Gemma3ForCausalLM", "gemma3_text") | _gemma(keys)
    full = rope_parameters(keys, _common(keys)["head_dim"])
    near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 1e12, 10_000.0)}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": near}
    window = _window(keys)
    config |= {"sliding_window": window or 4096, "layer_types": _gemma3_layers(keys, window)}
    if keys.has("final_logit_softcapping") and keys.value("final_logit_softcapping") != 0.0:
        config["final_logit_softcapping"] = keys.number("final_logit_softcapping", CAP_MAX)
    return config


def _gemma3_layers(keys: ArchKeys, window: int | None) -> list[str]:
    n_layers, pattern = _common(keys)["num_hidden_layers"], "attention.sliding_window_pattern"
    if isinstance(keys.value(pattern), MetaArray):
        slides = keys.flags(pattern)
        if len(slides) != n_layers:
            raise refuse("bad_model", f"{keys.name}.{pattern} has {len(slides)} items for {shown(n_layers)} layers.")
    else:
        period = keys.integer(pattern, 1, LAYERS_MAX, GEMMA3_PERIOD)
        slides = [(layer + 1) % period != 0 for layer in range(n_layers)]
    return ["sliding_attention" if window and it_slides else "full_attention" for it_slides in slides]


_CONFIGS: Mapping[str, Callable[[ArchKeys], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "phi2": _phi2,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
