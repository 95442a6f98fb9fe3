"""Published tensor names, and the canonical place of each: one table per family, one way to read a table.

Promises: what a table expects of a model fills its canonical matrices exactly. Refuses to know files.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import attrs

from hydra.protocol.model.encoding import TensorShape
from hydra.protocol.model.layout import Part, Section, part_shapes, section_rows
from hydra.protocol.model.model_spec import ModelShape, Place, WeightRole, WeightSide

ROTARY_CONSTANT = "rotary_emb.inv_freq"  # old files carry it; transformers too computes it from the config instead

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,8})\.", re.ASCII)
_BIAS_OF: dict[WeightRole, WeightRole] = {
    "attention_norm": "attention_norm_bias",
    "qkv": "qkv_bias",
    "query_norm": "query_norm_bias",
    "key_norm": "key_norm_bias",
    "out": "out_bias",
    "after_attention_norm": "after_attention_norm_bias",
    "mlp_norm": "mlp_norm_bias",
    "gate_up": "gate_up_bias",
    "down": "down_bias",
    "after_mlp_norm": "after_mlp_norm_bias",
    "router": "router_bias",
    "final_norm": "final_norm_bias",
    "head": "head_bias",
}
_SIDES: dict[str, WeightSide] = {"mxfp4_scales": "scale"}


NameForm: TypeAlias = Literal["module", "tensor", "transposed", "either"]
"""How a name stands for tensors: a module's, with a weight and perhaps a bias behind it, or a tensor's own. Matrices of
all experts in one tensor: transposed [experts, columns, rows], or either so or not as its shape shows."""


@attrs.frozen
class Slot:
    """A role, and the section of it that one published module takes."""

    role: WeightRole
    section: Section = "all"
    form: NameForm = "module"


@attrs.frozen(kw_only=True)
class Names:
    """A family's published module names, without ".weight" and ".bias".

    `layer` is what stands behind "model.layers.N."; an "{expert}" in a name stands for each expert's number. How one
    checkpoint writes them may differ in what stands before (see `name_prefix`).
    """

    layer: Mapping[str, Slot]
    layers: str = "model.layers."
    norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"

    def ends(self) -> dict[str, Slot]:
        return {self.embedding: Slot("embedding"), self.norm: Slot("final_norm"), self.head: Slot("head")}

    def layer_of(self, name: str) -> int | None:
        """The layer a tensor belongs to, by its name; None for the ends and for anything else."""
        match = _NUMBER.match(name, len(self.layers)) if name.startswith(self.layers) else None
        return int(match[1]) if match else None


ATTENTION: dict[str, Slot] = {
    "input_layernorm": Slot("attention_norm"),
    "self_attn.q_proj": Slot("qkv", "q"),
    "self_attn.k_proj": Slot("qkv", "k"),
    "self_attn.v_proj": Slot("qkv", "v"),
    "self_attn.o_proj": Slot("out"),
}
DENSE: dict[str, Slot] = {
    "mlp.gate_proj": Slot("gate_up", "gate"),
    "mlp.up_proj": Slot("gate_up", "up"),
    "mlp.down_proj": Slot("down"),
}
HEAD_NORMS: dict[str, Slot] = {"self_attn.q_norm": Slot("query_norm"), "self_attn.k_norm": Slot("key_norm")}
MLP_NORM: dict[str, Slot] = {"post_attention_layernorm": Slot("mlp_norm")}


@attrs.frozen
class Expected:
    """A published tensor that a model must have; its shape is that of the canonical matrix, whatever its form."""

    name: str
    shape: TensorShape
    place: Place
    form: NameForm = "module"


def expected_tensors(shape: ModelShape, names: Names) -> Iterator[Expected]:
    """Every tensor of a model of this shape, from input to output."""
    ends = names.ends()
    yield from _of_part(shape, "embedding", ends, "")
    for layer in range(shape.n_layers):
        yield from _of_part(shape, layer, names.layer, f"{names.layers}{layer}.")
    yield from _of_part(shape, "norm", ends, "")
    yield from _of_part(shape, "head", ends, "")


def _of_part(shape: ModelShape, part: Part, modules: Mapping[str, Slot], prefix: str) -> Iterator[Expected]:
    shapes = part_shapes(shape, part)
    layer = part if isinstance(part, int) else None
    spec = None if layer is None else shape.decoder.layer(layer)
    for module, slot in modules.items():
        for role, suffix in _tensors_of(slot):
            if role not in shapes:
                continue
            for expert, number, size in _blocks(module, shapes[role]):
                rows = section_rows(spec, role, slot.section, size[0])
                yield Expected(
                    f"{prefix}{module.replace('{expert}', number)}{suffix}",
                    (rows.count, *size[1:]),
                    Place(
                        role=role,
                        layer=layer,
                        first_row=rows.first,
                        expert=expert,
                        side=_SIDES.get(slot.form, "values"),
                    ),
                    slot.form,
                )


def _tensors_of(slot: Slot) -> Iterator[tuple[WeightRole, str]]:
    """The role of each tensor that a name stands for, and what stands behind the name."""
    if slot.form != "module":
        yield slot.role, ""
        return
    yield slot.role, ".weight"
    if slot.role in _BIAS_OF:
        yield _BIAS_OF[slot.role], ".bias"


def _blocks(module: str, size: TensorShape) -> Iterator[tuple[int | None, str, TensorShape]]:
    """(expert, its number in the name, its share's shape); one without an expert where the name has none."""
    if "{expert}" not in module:
        yield None, "", size
        return
    for expert in range(size[0]):
        yield expert, str(expert), size[1:]
