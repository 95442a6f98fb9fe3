"""compressed-tensors' config, as llm-compressor writes it: groups of targets, each with a format and the arguments of
its weights.

A module takes the scheme of the target that matches it most closely, unless `ignore` matches it too. What is said of
activations is passed over: they are computed with in full.
"""

from collections.abc import Sequence
from typing import Any, Literal

import structlog

from hydra.protocol.model.encoding import GroupEncoding
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.quantised.float_schemes import Float8, PackedFloat4
from hydra.store.models.quantised.integer_schemes import Int8, Packed
from hydra.store.models.quantised.name_patterns import TargetNames
from hydra.store.models.quantised.quantisation import ModuleKind, Quantisation
from hydra.store.models.quantised.scheme import Scheme
from hydra.store.models.quantised.words import GROUP_MAX, is_absent, refuse_unknown, strings

GROUPS_MAX = 1000
FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "dense",
)  # fmt: skip
CLASSES: dict[ModuleKind, tuple[str, ...]] = {
    "linear": ("Linear", "Module"),
    "head": ("Linear", "Module"),
    "experts": (),
    "embedding": ("Embedding", "Module"),
}
_MODEL_KEYS = (
    "quant_method", "format", "config_groups", "ignore", "kv_cache_scheme", "quantization_status",
    "global_compression_ratio", "version", "sparsity_config", "transform_config", "moe_sparsity_config",
)  # fmt: skip
_GROUP_KEYS = ("targets", "weights", "input_activations", "output_activations", "format")
_WEIGHT_KEYS = (
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
    "zp_dtype", "observer", "observer_kwargs",
)  # fmt: skip

log = structlog.get_logger()


def read_compressed_tensors(config: Values) -> Quantisation:
    """Raises RefusalError: bad_model, unsupported."""
    refuse_unknown(config, _MODEL_KEYS)
    for key in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        if not is_absent(config.get(key)) and not _is_dense(config.get(key)):
            raise config.unsupported(key, config.get(key), "a model without it")
    if config.get("quantization_status") not in (None, "compressed", "frozen"):
        raise config.unsupported("quantization_status", config.get("quantization_status"), "'compressed'")
    if config.has("kv_cache_scheme"):
        log.info("kv_cache_scheme is passed over: keys and values are kept in the dtype that is computed in")
    groups = config.nested("config_groups")
    if groups is None or not groups.keys() or len(groups.keys()) > GROUPS_MAX:
        raise config.bad("config_groups must be an object with one entry for each way of storing")
    schemes: dict[str, Scheme | None] = {}
    activations = False
    for name in groups.names():
        group = groups.nested(name)
        if group is None:
            raise groups.unsupported(name, groups.get(name), "an object with targets and weights")
        refuse_unknown(group, _GROUP_KEYS)
        activations = activations or group.has("input_activations")
        schemes |= dict.fromkeys(strings(group, "targets"), _scheme(config, group))
    if activations:
        log.info("the config quantises activations; here only weights are, and activations are computed with in full")
    targets = TargetNames.of(schemes, groups.file)
    ignored = TargetNames.of(strings(config, "ignore"), f"{config.file}: ignore")

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        target = targets.first(module, CLASSES[kind])
        if target is None or ignored.first(module, CLASSES[kind]) is not None:
            return None
        return schemes[target]

    return Quantisation(where=config.file, scheme_of=scheme_of)


def _is_dense(value: Any) -> bool:
    """A sparsity_config that only says that nothing is sparse."""
    return isinstance(value, dict) and value.get("format") == "dense"


def _scheme(config: Values, group: Values) -> Scheme | None:
    weights = group.nested("weights")
    if weights is None:
        return None
    refuse_unknown(weights, _WEIGHT_KEYS)
    bits, kind = weights.integer("num_bits", 16, 8), weights.get("type") or "int"
    kind = kind.lower() if isinstance(kind, str) else kind
    if weights.get("dynamic") not in (None, False):
        raise weights.unsupported("dynamic", weights.get("dynamic"), "false, as weights have it,")
    stated = group.get("format") or config.get("format")
    format_ = _inferred(group, bits, kind) if stated in (None, "mixed-precision") else stated
    if format_ not in FORMATS:
        raise config.unsupported("format", format_, " or ".join(map(repr, FORMATS)))
    if format_ == "dense":
        return None
    symmetric = weights.boolean("symmetric", True)
    rows, columns = _group_shape(weights, _STRATEGIES[format_])
    if kind == "float":
        if not symmetric:
            raise weights.unsupported("symmetric", False, "true with floats")
        return _float_scheme(weights, format_, bits, (rows, columns))
    if kind != "int" or format_ not in ("pack-quantized", "int-quantized", "naive-quantized"):
        raise weights.unsupported("type", kind, f"'int' or 'float' as {format_} holds it")
    if bits not in (4, 8):
        raise weights.unsupported("num_bits", bits, "4 or 8")
    zero: Literal["none", "stored"] = "none" if symmetric else "stored"
    if format_ != "pack-quantized":
        return Int8(GroupEncoding("int8", 8, rows, columns, zero))
    return Packed(GroupEncoding("packed", bits, rows, columns, zero, ordered=_is_ordered(weights)))


def _float_scheme(weights: Values, format_: str, bits: int, group: tuple[int, int]) -> Scheme:
    match format_:
        case "nvfp4-pack-quantized" if bits == 4 and group == (1, 16):
            return PackedFloat4(GroupEncoding("nvfp4", 4, 1, 16))
        case "mxfp4-pack-quantized" if bits == 4 and group == (1, 32):
            return PackedFloat4(GroupEncoding("mxfp4", 4, 1, 32))
        case "float-quantized" | "naive-quantized" if bits == 8:
            return Float8(GroupEncoding("float8", 8, *group), ".weight_scale")
    what = f"floats of {bits} bits in groups of {group[0]} x {group[1]} as {format_}"
    raise weights.unsupported("weights", what, "float8, NVFP4 in groups of 16 and MXFP4 in groups of 32")


def _inferred(group: Values, bits: int, kind: Any) -> str:
    """The format that compressed-tensors itself takes where none is stated."""
    weights = group.nested("weights")
    if kind == "float" and bits == 4:
        return "mxfp4-pack-quantized" if weights and weights.get("group_size") == 32 else "nvfp4-pack-quantized"
    if kind == "float":
        return "float-quantized"
    inputs = group.nested("input_activations")
    return "pack-quantized" if inputs is None or bits < 8 else "int-quantized"


_STRATEGIES: dict[str, Sequence[str]] = {
    "pack-quantized": ("group", "channel"),
    "int-quantized": ("tensor", "channel", "group"),
    "float-quantized": ("tensor", "channel", "group", "block"),
    "naive-quantized": ("tensor", "channel", "group"),
    "nvfp4-pack-quantized": ("tensor_group",),
    "mxfp4-pack-quantized": ("group",),
}


def _group_shape(weights: Values, known: Sequence[str]) -> tuple[int, int]:
    """Rows and columns that have one scale; 0: all."""
    width = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if width is None else "channel" if width == -1 else "group"
    if strategy not in known:
        raise weights.unsupported("strategy", strategy, " or ".join(map(repr, known)))
    match strategy:
        case "tensor":
            return 0, 0
        case "channel":
            return 1, 0
        case "block":
            return _block(weights)
        case _:
            return 1, weights.integer("group_size", GROUP_MAX)


def _block(weights: Values) -> tuple[int, int]:
    block = weights.get("block_structure")
    if isinstance(block, str):  # as older versions wrote it, "128x128"
        block = [int(side) if side.isdecimal() and len(side) < 8 else 0 for side in block.split("x")]
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n <= GROUP_MAX for n in block):
        raise weights.bad(f"block_structure must be two numbers, rows and columns, not {shown(block)}")
    return block[0], block[1]


def _is_ordered(weights: Values) -> bool:
    order = weights.get("actorder")
    if order in (None, False, "weight", "static"):
        return False
    if order in ("group", "dynamic", True):
        return True
    raise weights.unsupported("actorder", order, "'group' or 'weight'")
