"""Random models of every family in several shapes, as transformers writes them, and what transformers says of them."""

import zlib
from pathlib import Path

import attrs
import torch
import transformers

from tests.unit.kernels.bench import LIBRARY, Published

VOCAB = 1003
LONG, SHORT = [4.0, 6.0, 9.0, 17.5], [1.0, 1.1, 1.25, 1.5]  # rope factors of 8 rotated channels
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@attrs.frozen
class Shape:
    """A config of one family. `seed` is one whose greedy runs have no near ties."""

    label: str
    config: str
    seed: int
    changes: dict[str, object] = attrs.field(factory=dict, hash=False)
    long: bool = False  # part of the full sweeps only
    text: str = ""  # of a multimodal model: the model_type of the text model, whose config `changes` are

    @property
    def name(self) -> str:
        return f"{self.config.removesuffix('Config')}-{self.label}"


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def rope(**said: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_theta": 10_000.0} | said}


def scaled(**said: object) -> dict[str, object]:
    return rope(rope_type="longrope", long_factor=LONG, short_factor=SHORT, **said)


GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
VISION = {
    "Gemma3Config": {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **_SIGLIP},
    "Mistral3Config": {"model_type": "pixtral", "image_size": 16, "patch_size": 8, "head_dim": 8, **_SIGLIP},
    "Qwen3VLConfig": _QWEN_VISION,
    "Qwen3VLMoeConfig": _QWEN_VISION,
}
GROWING = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
SECTIONS = {"rope_type": "default", "mrope_section": [6, 3, 3], "mrope_interleaved": True}
OSS = {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 24, "sliding_window": 8}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 24}

SHAPES = (
    Shape("llama3", "LlamaConfig", 4, {"head_dim": 24} | rope(**LLAMA3, original_max_position_embeddings=32)),
    Shape("dynamic", "LlamaConfig", 1, {"max_position_embeddings": 32, **rope(rope_type="dynamic", factor=2.0)}),
    Shape("plain", "LlamaConfig", 0, {"tie_word_embeddings": True, "num_key_value_heads": 4}, long=True),
    Shape("linear", "LlamaConfig", 1, {"num_key_value_heads": 1, **rope(rope_type="linear", factor=3.0)}, long=True),
    Shape("yarn", "LlamaConfig", 1, {"attention_bias": True, "mlp_bias": True, **rope(**YARN)}, long=True),
    Shape("yarn-untruncated", "LlamaConfig", 2, rope(**YARN, truncate=False, mscale=0.7, mscale_all_dim=0.4),
          long=True),
    Shape("window", "MistralConfig", 0, {"sliding_window": 7, "head_dim": 24}),
    Shape("no-window", "MistralConfig", 0, {"sliding_window": None, "num_key_value_heads": 1}),
    Shape("wide-window", "MistralConfig", 1, {"sliding_window": 64, "vocab_size": 517}, long=True),
    Shape("two-of-four", "MixtralConfig", 0, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Shape("window", "MixtralConfig", 3, {"num_local_experts": 6, "num_experts_per_tok": 1, "sliding_window": 9}),
    Shape("all", "MixtralConfig", 2, {"num_local_experts": 3, "num_experts_per_tok": 3, "head_dim": 8}, long=True),
    Shape("plain", "Qwen2Config", 1, {"tie_word_embeddings": True}),
    Shape("window", "Qwen2Config", 1, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    Shape("one-head", "Qwen2Config", 1, {"num_key_value_heads": 1, **rope(**YARN)}, long=True),
    Shape("wide-head", "Qwen3Config", 0, {"head_dim": 32}),
    Shape("window", "Qwen3Config", 0, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    Shape("biased", "Qwen3Config", 0, {"head_dim": 16, "attention_bias": True, "num_key_value_heads": 1}, long=True),
    Shape("all-sparse", "Qwen3MoeConfig", 0, {**MOE, "norm_topk_prob": True}),
    Shape("mixed", "Qwen3MoeConfig", 0, {**MOE, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    Shape("mlp-only", "Qwen3MoeConfig", 4, {**MOE, "mlp_only_layers": [0, 2], "tie_word_embeddings": True}, long=True),
    Shape("tied", "PhiConfig", 0, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    Shape("quarter-head", "PhiConfig", 0, {"qk_layernorm": True, **rope(partial_rotary_factor=0.25)}),
    Shape("erf", "PhiConfig", 1, {"hidden_act": "gelu", "num_key_value_heads": 1}, long=True),
    Shape("longrope", "Phi3Config", 0, {"original_max_position_embeddings": 40, **scaled(partial_rotary_factor=0.5)}),
    Shape("window", "Phi3Config", 0, {"sliding_window": 9, "num_key_value_heads": 1}),
    Shape("all-long", "Phi3Config", 0, {"original_max_position_embeddings": 4, **scaled(partial_rotary_factor=0.5)},
          long=True),
    Shape("partial", "Phi3Config", 0, {"tie_word_embeddings": True, **rope(partial_rotary_factor=0.75)}, long=True),
    Shape("window", "Gemma2Config", 0, {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 20}),
    Shape("one-head", "Gemma2Config", 0, {"head_dim": 16, "num_key_value_heads": 1, "attn_logit_softcapping": 5.0}),
    Shape("uncapped", "Gemma2Config", 0, {"head_dim": 16, "attn_logit_softcapping": None, "sliding_window": 5},
          long=True),
    Shape("window", "Gemma3TextConfig", 1, {"head_dim": 24, "sliding_window": 8, "sliding_window_pattern": 2}),
    Shape("scaled", "Gemma3TextConfig", 0, {"head_dim": 16, "sliding_window": 5, "sliding_window_pattern": 3,
          "rope_parameters": GEMMA3_ROPES, "num_key_value_heads": 1, "final_logit_softcapping": 20.0}),
    Shape("biased", "Gemma3TextConfig", 1, {"head_dim": 16, "attention_bias": True, "sliding_window": 300}, long=True),
    Shape("growing", "Ministral3Config", 1, {"head_dim": 24, **rope(**GROWING)}),
    Shape("window", "Ministral3Config", 2, {"head_dim": 16, "sliding_window": 9, "tie_word_embeddings": True,
          **rope(**GROWING | {"llama_4_scaling_beta": 0.3, "attention_factor": 1.2})}, long=True),
    Shape("window", "Gemma3Config", 0, {"head_dim": 24, "sliding_window": 8, "sliding_window_pattern": 2,
          "tie_word_embeddings": True}, text="gemma3_text", long=True),
    Shape("untied", "Gemma3Config", 0, {"head_dim": 16, "sliding_window": 5, "rope_parameters": GEMMA3_ROPES,
          "num_key_value_heads": 1}, text="gemma3_text", long=True),
    Shape("mistral", "Mistral3Config", 3, {"head_dim": 24, "sliding_window": None}, text="mistral",
          long=True),
    Shape("ministral3", "Mistral3Config", 6, {"head_dim": 16, "tie_word_embeddings": True, **rope(**GROWING)},
          text="ministral3", long=True),
    Shape("sections", "Qwen3VLConfig", 3, {"head_dim": 24, **rope(**SECTIONS)}, text="qwen3_vl_text", long=True),
    Shape("yarn", "Qwen3VLConfig", 0, {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True,
          **rope(**YARN, mrope_section=[4, 2, 2])}, text="qwen3_vl_text", long=True),
    Shape("fused", "Qwen3VLMoeConfig", 1, {**MOE, **rope(**SECTIONS)}, text="qwen3_vl_moe_text"),
    Shape("mixed", "Qwen3VLMoeConfig", 2, {**MOE, "num_experts": 4, "mlp_only_layers": [1],
          "moe_intermediate_size": 32, **rope(**SECTIONS)}, text="qwen3_vl_moe_text", long=True),
    Shape("window", "GptOssConfig", 0, OSS),
    Shape("plain-rope", "GptOssConfig", 0, {**OSS, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16,
          "num_key_value_heads": 4, "attention_bias": False, "swiglu_limit": 0.5, **rope(rope_type="default")},
          long=True),
)  # fmt: skip


def publish_family(path: Path, shape: Shape, spread: float = 0.5, **changes: object) -> Published:
    """The model on disk in several shards, described, and in memory. Norms and biases are not their defaults."""
    return published(path, random_model(shape, spread, **changes))


def publish_gentle(path: Path, shape: Shape) -> Published:
    """The same shape with smaller weights, and routers that choose clearly, for bfloat16. The greedy runs want clear
    tokens, and with them come scores so steep that transformers in bfloat16 is itself 2 to 4 % away from its float32.
    """
    reference = random_model(shape, 0.2, initializer_range=0.04)
    choose_clearly(reference)
    return published(path, reference)


def random_model(shape: Shape, spread: float, **changes: object) -> transformers.PreTrainedModel:
    torch.manual_seed(shape.seed + zlib.crc32(shape.name.encode()))
    config = (_multimodal if shape.text else _plain)(shape, SIZES | shape.changes | changes)
    kind = shape.config.removesuffix("TextConfig").removesuffix("Config")
    reference = getattr(transformers, f"{kind}{'ForConditionalGeneration' if shape.text else 'ForCausalLM'}")(config)
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            if "norm" in name and name.endswith("weight"):
                tensor.uniform_(1 - spread, 1 + spread).sub_(float(shape.config.startswith("Gemma")))
            elif name.endswith(("bias", "sinks")):
                tensor.uniform_(-spread, spread)
    return reference.eval()


def _plain(shape: Shape, said: dict[str, object]) -> transformers.PreTrainedConfig:
    return getattr(transformers, shape.config)(**said)


def _multimodal(shape: Shape, said: dict[str, object]) -> transformers.PreTrainedConfig:
    """Beside the text model stands a small vision part; no prompt has a token that asks for it."""
    tokens = dict.fromkeys(IMAGE_TOKENS, VOCAB + 1)
    return getattr(transformers, shape.config)(
        text_config=said | {"model_type": shape.text},
        vision_config=VISION[shape.config],
        tie_word_embeddings=said.get("tie_word_embeddings", False),
        initializer_range=said["initializer_range"],
        **tokens,
    )


def text_model(reference: transformers.PreTrainedModel) -> torch.nn.Module:
    return getattr(reference.model, "language_model", reference.model)


@torch.no_grad()
def choose_clearly(reference: transformers.PreTrainedModel) -> None:
    """Gives every token a class, in a channel of its own that the layers hardly write to, and every class its own
    order of the experts, well apart: no last bit of a number chooses an expert. Dense models stay as they are.
    """
    text = text_model(reference)
    layers = text.layers
    chosen_by = [getattr(layer.mlp, "gate", getattr(layer.mlp, "router", None)) for layer in layers]
    routers = [router for router in chosen_by if router is not None]
    if not routers:
        return
    embedding = text.embed_tokens.weight
    n_experts = len(routers[0].weight)
    channels, other = slice(0, n_experts), 0.1
    for name, tensor in layers.named_parameters():
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight", "o_proj.bias", "mlp.down_proj.bias")):
            tensor[channels] *= other
        elif name.endswith(("experts.down_proj", "experts.down_proj_bias")):  # [experts, hidden (, inner)]
            transposed = tensor.shape[1] != embedding.shape[1]  # as gpt-oss has it
            tensor[(..., channels) if transposed else (slice(None), channels)] *= other
    token = torch.arange(len(embedding))
    embedding[:, channels] *= other
    embedding[token, token % n_experts] = 0.7
    expert, kind = torch.arange(n_experts)[:, None], torch.arange(n_experts)
    for router in routers:
        for tensor in router.parameters():
            tensor *= other
        router.weight[:, channels] = 0.2 * ((expert + kind) % n_experts - (n_experts - 1) / 2)


def published(path: Path, reference: transformers.PreTrainedModel) -> Published:
    reference.save_pretrained(path, max_shard_size="150KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return Published(path, LIBRARY.describe(str(path)), reference)
