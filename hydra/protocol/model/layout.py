"""The canonical matrices of a model: which there are, in what shape, and which rows of a fused one belong to whom.

The store maps published tensors onto these places, the kernels allocate them: both ask here, so they cannot disagree.
Linear weights are [rows out, columns in]; projections that read the same input lie in one matrix.
"""

from typing import Literal, TypeAlias

import attrs

from hydra.protocol.model.encoding import TensorShape
from hydra.protocol.model.layer_spec import AttentionSpec, DenseSpec, FeedForwardSpec, LayerSpec, MoeSpec
from hydra.protocol.model.model_spec import ModelShape, Place, TensorRange, WeightRole

EndPart: TypeAlias = Literal["embedding", "norm", "head"]
Part: TypeAlias = int | EndPart  # a layer by its index, or one of the ends: the unit that is read, held and freed
Section: TypeAlias = Literal["all", "q", "k", "v", "gate", "up"]

_END_PARTS: dict[WeightRole, EndPart] = {
    "embedding": "embedding",
    "final_norm": "norm",
    "final_norm_bias": "norm",
    "head": "head",
    "head_bias": "head",
}


@attrs.frozen
class Rows:
    """Rows [first, first + count) of a canonical matrix, or of one expert's."""

    first: int
    count: int


def part_of(source: TensorRange) -> Part:
    """The part that a tensor goes to. Raises KeyError when it has no place, or names a layer's role and no layer."""
    place = place_of(source)
    return _END_PARTS[place.role] if place.layer is None else place.layer


def place_of(source: TensorRange) -> Place:
    """Where a tensor goes. Raises KeyError for bytes that go nowhere."""
    if source.place is None:
        raise KeyError(source.name)
    return source.place


def is_norm(role: WeightRole) -> bool:
    return "_norm" in role


def slice_parts(shape: ModelShape, first_layer: int, end_layer: int) -> frozenset[Part]:
    """The parts of layers [first_layer, end_layer); a tied head is the embedding, held once."""
    parts: set[Part] = set(range(first_layer, end_layer))
    if first_layer == 0:
        parts.add("embedding")
    if end_layer == shape.n_layers:
        parts |= {"norm", "embedding" if shape.tied else "head"}
        if shape.decoder.head_bias:
            parts.add("head")
    return frozenset(parts)


def part_shapes(shape: ModelShape, part: Part) -> dict[WeightRole, TensorShape]:
    """Every canonical tensor of a part."""
    decoder = shape.decoder
    match part:
        case "embedding":
            return {"embedding": (shape.vocab, shape.hidden)}
        case "norm":
            biased = decoder.norm.kind == "layer"
            return {"final_norm": (shape.hidden,), **({"final_norm_bias": (shape.hidden,)} if biased else {})}
        case "head":
            head: dict[WeightRole, TensorShape] = {} if shape.tied else {"head": (shape.vocab, shape.hidden)}
            return {**head, **({"head_bias": (shape.vocab,)} if decoder.head_bias else {})}
        case _:
            layer, hidden = decoder.layer(part), shape.hidden
            halves = _attention_shapes(layer.attention, hidden) | _feed_forward_shapes(layer.feed_forward, hidden)
            return halves | _norm_shapes(layer, hidden)


def _attention_shapes(spec: AttentionSpec, hidden: int) -> dict[WeightRole, TensorShape]:
    queries = spec.n_heads * spec.head_dim
    rows = queries + 2 * spec.n_kv_heads * spec.head_dim
    shapes: dict[WeightRole, TensorShape] = {"qkv": (rows, hidden), "out": (hidden, queries)}
    if spec.qkv_bias:
        shapes["qkv_bias"] = (rows,)
    if spec.out_bias:
        shapes["out_bias"] = (hidden,)
    if spec.sinks:
        shapes["sinks"] = (spec.n_heads,)
    if spec.qk_norm is not None:
        shapes |= {"query_norm": (spec.head_dim,), "key_norm": (spec.head_dim,)}
        if spec.qk_norm.kind == "layer":
            shapes |= {"query_norm_bias": (spec.head_dim,), "key_norm_bias": (spec.head_dim,)}
    return shapes


def _feed_forward_shapes(spec: FeedForwardSpec, hidden: int) -> dict[WeightRole, TensorShape]:
    match spec:
        case MoeSpec():
            return _expert_shapes(spec, hidden)
        case DenseSpec():
            inner = spec.intermediate
            rows = inner * (2 if spec.gated else 1)
            shapes: dict[WeightRole, TensorShape] = {"gate_up": (rows, hidden), "down": (hidden, inner)}
            return shapes | {"gate_up_bias": (rows,), "down_bias": (hidden,)} if spec.bias else shapes


def _expert_shapes(spec: MoeSpec, hidden: int) -> dict[WeightRole, TensorShape]:
    count, inner = spec.n_experts, spec.intermediate
    shapes: dict[WeightRole, TensorShape] = {
        "router": (count, hidden),
        "expert_gate_up": (count, 2 * inner, hidden),
        "expert_down": (count, hidden, inner),
    }
    if spec.router_bias:
        shapes["router_bias"] = (count,)
    if spec.expert_bias:
        shapes |= {"expert_gate_up_bias": (count, 2 * inner), "expert_down_bias": (count, hidden)}
    return shapes


def _norm_shapes(layer: LayerSpec, hidden: int) -> dict[WeightRole, TensorShape]:
    """A parallel block has one norm for both of its halves, a sandwich a second one behind each."""
    names: tuple[WeightRole, ...] = ("attention_norm",)
    biases: tuple[WeightRole, ...] = ("attention_norm_bias",)
    if layer.block != "parallel":
        names, biases = (*names, "mlp_norm"), (*biases, "mlp_norm_bias")
    if layer.block == "sandwich":
        names = (*names, "after_attention_norm", "after_mlp_norm")
        biases = (*biases, "after_attention_norm_bias", "after_mlp_norm_bias")
    if layer.norm.kind == "layer":
        names += biases
    return dict.fromkeys(names, (hidden,))


def section_rows(layer: LayerSpec | None, role: WeightRole, section: Section, height: int) -> Rows:
    """The rows that one published projection takes in a canonical matrix of `height` rows; `layer` None: at the ends,
    whose matrices have no sections.
    """
    if section == "all":
        return Rows(0, height)
    if role in ("qkv", "qkv_bias"):
        assert layer is not None
        heads = layer.attention
        queries, keys = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        return {"q": Rows(0, queries), "k": Rows(queries, keys), "v": Rows(queries + keys, keys)}[section]
    return {"gate": Rows(0, height // 2), "up": Rows(height // 2, height // 2)}[section]
