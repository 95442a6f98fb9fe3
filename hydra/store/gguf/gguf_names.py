"""The names that llama.cpp gives a model's tensors, where each goes, and what its converter changed in it.

One table per architecture. Layers are called "blk.N.": a table has what comes behind, without ".weight" and ".bias".
Refuses to know shapes and files.
"""

from collections.abc import Container, Mapping

import attrs

from hydra.protocol.model.layout import Section, is_norm
from hydra.protocol.model.model_spec import Converted, WeightRole

LAYERS, EMBEDDING, NORM, HEAD = "blk.", "token_embd", "output_norm", "output"
EXPERT = ".{expert}"  # behind the name of a tensor that holds all experts, one behind the other

Goal = tuple[WeightRole, Section]


@attrs.frozen
class GgufNames:
    """`layer` by name; `converted` by name too, the ends included."""

    layer: Mapping[str, Goal]
    converted: Mapping[str, Converted]


_ATTENTION: dict[str, Goal] = {
    "attn_norm": ("attention_norm", "all"),
    "attn_q": ("qkv", "q"),
    "attn_k": ("qkv", "k"),
    "attn_v": ("qkv", "v"),
    "attn_output": ("out", "all"),
}
_FUSED: dict[str, Goal] = {
    "attn_norm": ("attention_norm", "all"),
    "attn_qkv": ("qkv", "all"),
    "attn_output": ("out", "all"),
}
_HEAD_NORMS: dict[str, Goal] = {"attn_q_norm": ("query_norm", "all"), "attn_k_norm": ("key_norm", "all")}
_MLP_NORM: dict[str, Goal] = {"ffn_norm": ("mlp_norm", "all")}
_DENSE: dict[str, Goal] = {
    "ffn_gate": ("gate_up", "gate"),
    "ffn_up": ("gate_up", "up"),
    "ffn_down": ("down", "all"),
}
_PLAIN: dict[str, Goal] = {"ffn_up": ("gate_up", "all"), "ffn_down": ("down", "all")}
_EXPERTS: dict[str, Goal] = {
    "ffn_gate_inp": ("router", "all"),
    f"ffn_gate_exps{EXPERT}": ("expert_gate_up", "gate"),
    f"ffn_up_exps{EXPERT}": ("expert_gate_up", "up"),
    f"ffn_down_exps{EXPERT}": ("expert_down", "all"),
}
_SANDWICH: dict[str, Goal] = {
    "post_attention_norm": ("after_attention_norm", "all"),
    "ffn_norm": ("mlp_norm", "all"),
    "post_ffw_norm": ("after_mlp_norm", "all"),
}

_LAYERS: Mapping[str, dict[str, Goal]] = {
    "llama": _ATTENTION | _MLP_NORM | _DENSE | _EXPERTS,
    "qwen2": _ATTENTION | _MLP_NORM | _DENSE,
    "qwen3": _ATTENTION | _HEAD_NORMS | _MLP_NORM | _DENSE,
    "qwen3moe": _ATTENTION | _HEAD_NORMS | _MLP_NORM | _DENSE | _EXPERTS,
    "phi2": _ATTENTION | _PLAIN,
    "phi3": _FUSED | _MLP_NORM | _PLAIN,
    "gemma2": _ATTENTION | _SANDWICH | _DENSE,
    "gemma3": _ATTENTION | _HEAD_NORMS | _SANDWICH | _DENSE,
}
_ROTATES_NEIGHBOURS = frozenset({"llama"})  # so the converter lays the halves of each head in pairs
_NORMS_PLUS_ONE = frozenset({"gemma2", "gemma3"})


def names_of(architecture: str, stored: Container[str]) -> GgufNames:
    """`stored` are the names of the tensors there: some files have queries, keys and values in one."""
    layer = _LAYERS[architecture]
    converted: dict[str, Converted] = {}
    if architecture in _ROTATES_NEIGHBOURS:
        converted |= {"attn_q": "interleaved", "attn_k": "interleaved"}
    elif "attn_q" in layer and f"{LAYERS}0.attn_qkv.weight" in stored:
        layer = _FUSED | {name: goal for name, goal in layer.items() if name not in _ATTENTION}
    elif "attn_qkv" in layer and f"{LAYERS}0.attn_q.weight" in stored:
        layer = _ATTENTION | {name: goal for name, goal in layer.items() if name not in _FUSED}
    if architecture in _NORMS_PLUS_ONE:
        norms = (name for name, (role, _) in layer.items() if is_norm(role))
        converted |= dict.fromkeys([*norms, NORM], "plus_one")
    return GgufNames(layer, converted)
