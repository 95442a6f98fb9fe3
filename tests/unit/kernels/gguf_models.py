"""Random models as llama.cpp's converter would write them: its names, its metadata, and what it changes in tensors.

Written once more in a few lines, from what the converter does and not from what the store undoes.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float32]
RENAMED = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.(final_layer)?norm\.", "output_norm."),
    (r"^lm_head\.", "output."),
    (r"^model\.layers\.", "blk."),
    (r"self_attn\.q_proj", "attn_q"),
    (r"self_attn\.k_proj", "attn_k"),
    (r"self_attn\.v_proj", "attn_v"),
    (r"self_attn\.qkv_proj", "attn_qkv"),
    (r"self_attn\.(o_proj|dense)", "attn_output"),
    (r"self_attn\.(q|k)_norm", r"attn_\1_norm"),
    (r"(block_sparse_moe|mlp)\.gate\.", "ffn_gate_inp."),
    (r"mlp\.(gate_up_proj|up_proj|fc1)", "ffn_up"),
    (r"mlp\.gate_proj", "ffn_gate"),
    (r"mlp\.(down_proj|fc2)", "ffn_down"),
    (r"input_layernorm", "attn_norm"),
    (r"pre_feedforward_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm", "post_ffw_norm"),
)
EXPERT = re.compile(r"(model\.layers\.\d+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
EXPERTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "phi": "phi2", "phi3": "phi3", "gemma2": "gemma2", "gemma3_text": "gemma3",
}  # fmt: skip


def write_gguf(path: Path, directory: Path, config: Any, *, tied: bool, **writer: Any) -> None:
    """The model that transformers saved in `directory`, as one GGUF file (or several, by `writer`)."""
    architecture = ARCHITECTURES[config.model_type]
    out = gguf.GGUFWriter(path, architecture, **writer)
    write_metadata(out, config, architecture)
    write_tokens(out, config.vocab_size)
    for name, array in converted(saved_tensors(directory), config, architecture):
        if not (tied and name == "output.weight"):
            out.add_tensor(name, np.ascontiguousarray(array))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def saved_tensors(directory: Path) -> dict[str, Array]:
    return {name: array for file in sorted(directory.glob("*.safetensors")) for name, array in load_file(file).items()}


def converted(tensors: dict[str, Array], config: Any, architecture: str) -> Iterator[tuple[str, Array]]:
    """(name, array) as the converter has them."""
    experts: dict[str, dict[int, Array]] = {}
    for name, array in tensors.items():
        if match := EXPERT.fullmatch(name):
            stacked = f"{match[1].replace('model.layers', 'blk')}.ffn_{EXPERTS[match[3]]}_exps.weight"
            experts.setdefault(stacked, {})[int(match[2])] = array
            continue
        if architecture == "llama" and re.search(r"self_attn\.[qk]_proj", name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2)
            array = array.reshape(-1, *array.shape[3:])
        if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            array = array + 1
        yield renamed(name, architecture), array
    for name, shares in experts.items():
        yield name, np.stack([shares[number] for number in sorted(shares)])
    if (factors := getattr(config, "rope_parameters", {})).get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(factors, config.head_dim)
    if factors.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            yield f"rope_factors_{kind}.weight", np.array(factors[f"{kind}_factor"], np.float32)


def renamed(name: str, architecture: str) -> str:
    sandwich = architecture.startswith("gemma")
    name = name.replace("post_attention_layernorm", "post_attention_norm" if sandwich else "ffn_norm")
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def llama3_factors(rope: dict[str, Any], dim: int) -> Array:
    """As transformers' own rope divides the plain angles by the scaled ones."""
    config = transformers.LlamaConfig(head_dim=dim, rope_parameters=rope, max_position_embeddings=1 << 17)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = rope["rope_theta"] ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    return (plain / scaled.double().numpy()).astype(np.float32)


def write_metadata(out: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    if architecture == "phi2":
        out.add_layer_norm_eps(config.layer_norm_eps)
    else:
        out.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size or architecture.startswith("gemma"):
        out.add_key_length(head_dim)
        out.add_value_length(head_dim)
    OF_ARCHITECTURE.get(config.model_type, lambda out, config: None)(out, config)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    out.add_rope_freq_base(rope["rope_theta"])
    out.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if rope["rope_type"] == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        out.add_rope_scaling_factor(rope["factor"])
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        out.add_rope_scaling_attn_factors(longrope_scale(config))
    if architecture == "phi3":
        out.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def longrope_scale(config: Any) -> float:
    factor = config.max_position_embeddings / config.original_max_position_embeddings
    return float(np.sqrt(1 + np.log(factor) / np.log(config.original_max_position_embeddings)))


def _experts(out: gguf.GGUFWriter, config: Any) -> None:
    out.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    out.add_expert_used_count(config.num_experts_per_tok)


def _mixtral(out: gguf.GGUFWriter, config: Any) -> None:
    _experts(out, config)
    _window(out, config)


def _qwen3_moe(out: gguf.GGUFWriter, config: Any) -> None:
    _experts(out, config)
    out.add_expert_feed_forward_length(config.moe_intermediate_size)


def _window(out: gguf.GGUFWriter, config: Any) -> None:
    out.add_sliding_window(config.sliding_window or 0)


def _gemma2(out: gguf.GGUFWriter, config: Any) -> None:
    out.add_attn_logit_softcapping(config.attn_logit_softcapping)
    out.add_final_logit_softcapping(config.final_logit_softcapping)
    _window(out, config)


def _gemma3(out: gguf.GGUFWriter, config: Any) -> None:
    if config.final_logit_softcapping:
        out.add_final_logit_softcapping(config.final_logit_softcapping)
    _window(out, config)
    out.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


OF_ARCHITECTURE: dict[str, Callable[[gguf.GGUFWriter, Any], None]] = {
    "mistral": _window,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "phi3": _window,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}


def write_tokens(out: gguf.GGUFWriter, vocab: int) -> None:
    """The letters, one merge, an end, and words that no text has."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "<|im_end|>"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([*letters, *(f"w{number}" for number in range(vocab - len(letters)))])
    out.add_token_types([1] * (len(letters) - 1) + [3] + [1] * (vocab - len(letters)))
    out.add_token_merges(["a b"])
    out.add_eos_token_id(len(letters) - 1)
    out.add_chat_template("{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
