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
    config = getattr(transformers, shape.config)(**(SIZES | shape.changes | changes))
    kind = f"{shape.config.removesuffix('TextConfig').removesuffix('Config')}ForCausalLM"
    reference = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            if "norm" in name and name.endswith("weight"):
                tensor.uniform_(1 - spread, 1 + spread).sub_(float(shape.config.startswith("Gemma")))
            elif name.endswith("bias"):
                tensor.uniform_(-spread, spread)
    return reference


@torch.no_grad()
def choose_clearly(reference: transformers.PreTrainedModel) -> None:
    """Gives every token a class, in a channel of its own that the layers hardly write to, and every class its own
    order of the experts, well apart: no last bit of a number chooses an expert. Dense models stay as they are.
    """
    layers = reference.model.layers
    routers = [layer.mlp.gate.weight for layer in layers if hasattr(layer.mlp, "gate")]
    if not routers:
        return
    n_experts = len(routers[0])
    channels, other = slice(0, n_experts), 0.1
    for name, tensor in layers.named_parameters():
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            tensor[channels] *= other
        elif name.endswith("experts.down_proj"):  # [experts, hidden, inner]
            tensor[:, channels] *= other
    token = torch.arange(reference.config.vocab_size)
    embedding = reference.model.embed_tokens.weight
    embedding[:, channels] *= other
    embedding[token, token % n_experts] = 0.7
    expert, kind = torch.arange(n_experts)[:, None], torch.arange(n_experts)
    for router in routers:
        router *= other
        router[:, channels] = 0.2 * ((expert + kind) % n_experts - (n_experts - 1) / 2)


def published(path: Path, reference: transformers.PreTrainedModel) -> Published:
    reference.save_pretrained(path, max_shard_size="150KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return Published(path, LIBRARY.describe(str(path)), reference)
