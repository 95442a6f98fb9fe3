"""The keys of one architecture in GGUF metadata: "llama.context_length", and whatever else begins with its name.

Promises: a key of the architecture that nobody asked for, and that is not known to change nothing, is refused by name.
Refuses to know what the keys mean.
"""

from collections.abc import Mapping

import attrs

from hydra.protocol.refusal import RefusalError
from hydra.store.gguf.gguf_content import GgufContent
from hydra.store.gguf.gguf_metadata import MetaValue

# Keys that are of no consequence here, and values with which others are of none.
_SILENT = frozenset(
    {
        "vocab_size",
        "tensor_data_layout",
        "attention.layer_norm_epsilon",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
    }
)
_NEUTRAL: Mapping[str, tuple[MetaValue, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "pooling_type": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


@attrs.frozen
class ArchKeys:
    """`name` is the architecture's, as the file spells it. The readers are those of Metadata."""

    content: GgufContent
    name: str

    def has(self, key: str) -> bool:
        return self.content.metadata.has(self._full(key))

    def has_tensor(self, name: str) -> bool:
        return name in self.content.tensors

    def text(self, key: str, default: str) -> str:
        return self.content.metadata.text(self._full(key), default)

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        return self.content.metadata.one_of_all(self._full(key), least, most, default)

    def number(self, key: str, most: float, default: float | None = None) -> float:
        return self.content.metadata.number(self._full(key), most, default)

    def boolean(self, key: str, default: bool) -> bool:
        return self.content.metadata.boolean(self._full(key), default)

    def value(self, key: str) -> MetaValue | None:
        return self.content.metadata.get(self._full(key))

    def flags(self, key: str) -> list[bool]:
        return [bool(item) for item in self.content.metadata.numbers(self._full(key))]

    def unsupported(self, key: str, known: str) -> RefusalError:
        return self.content.metadata.unsupported(self._full(key), known)

    def refuse_the_unread(self) -> None:
        """Raises RefusalError unsupported."""
        metadata = self.content.metadata
        for full in sorted(metadata.values.keys() - metadata.read):
            key = full.removeprefix(f"{self.name}.")
            if key == full or key in _SILENT:
                continue
            value = metadata.values[full]
            if not any(type(value) is type(known) and value == known for known in _NEUTRAL.get(key, ())):
                raise metadata.unsupported(full, "a model of this architecture without it")

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}"
