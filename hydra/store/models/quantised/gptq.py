"""The configs of GPTQ (AutoGPTQ, GPTQModel, optimum), of AutoRound in GPTQ's or AWQ's packing, and of AWQ (AutoAWQ).

All three quantise the linear modules of the layers; an override names modules that are stored otherwise, or not at all.
GPTQModel takes the first entry of `dynamic` that a module's name begins with, AutoRound a module's own entry of
`extra_config` before the first that is found in its name.
"""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import structlog

from hydra.protocol.model.encoding import GroupEncoding
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.quantised.integer_schemes import Awq, Gptq
from hydra.store.models.quantised.name_patterns import Matching, Skips
from hydra.store.models.quantised.quantisation import ModuleKind, Quantisation
from hydra.store.models.quantised.scheme import Scheme
from hydra.store.models.quantised.words import (
    PATTERNS_MAX,
    group_width,
    is_absent,
    one_of,
    refuse_present,
    strings,
)

Override: TypeAlias = Callable[[str], Values | None]  # what holds for a module in place of the config; None: nothing

_ZERO_V1, _ZERO_V2 = "less_one", "stored"
_PACKINGS = {
    "auto_round:auto_gptq": _ZERO_V1,
    "auto_round:gptq": _ZERO_V1,
    "auto_gptq": _ZERO_V1,
    "auto_round": _ZERO_V2,
    "auto_round:gptqmodel": _ZERO_V2,
    "auto_round:auto_awq": "awq",
    "auto_round:awq": "awq",
    "auto_awq": "awq",
}
_FULL_NAME = re.compile(r"[\w.]*\.\d+\.[\w.]*", re.ASCII)  # with the number of a layer in it
_NUMBER = ("bits", "group_size", "desc_act", "sym")  # what an override may say of how a module is stored

log = structlog.get_logger()


def read_gptq(config: Values) -> Quantisation:
    """Raises RefusalError: bad_model, unsupported."""
    key = "checkpoint_format" if config.has("checkpoint_format") else "format"
    zero = one_of(config, key, {"gptq": _ZERO_V1, "gptq_v2": _ZERO_V2}, "gptq")
    refuse_present(config, ("is_marlin_format", "rotation", "adapter", "lora"))
    if config.get("pack_dtype") not in (None, "int32"):
        raise config.unsupported("pack_dtype", config.get("pack_dtype"), "'int32'")
    within = _nested_strings(config, "modules_in_block_to_quantize")
    head = config.boolean("lm_head")
    dynamic = _dynamic(config)
    plain = _gptq_scheme(config, config, zero)

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        if kind in ("embedding", "experts") or (kind == "head" and not head):
            return None
        if kind == "linear" and within and not any(module.endswith(f".{name}") for name in within):
            return None
        own = dynamic(module)
        return plain if own is None else _gptq_scheme(own, config, zero)

    return Quantisation(where=config.file, scheme_of=scheme_of, spare_biases=True)


def read_awq(config: Values) -> Quantisation:
    """Raises RefusalError: bad_model, unsupported."""
    key = "version" if config.has("version") else "format"
    one_of(config, key, {"gemm": None}, "gemm")
    scheme = _awq_scheme(config, config)
    skips = Skips.of(strings(config, "modules_to_not_convert"), f"{config.file}: modules_to_not_convert")

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        return scheme if kind == "linear" and not skips.skip(module) else None

    return Quantisation(where=config.file, scheme_of=scheme_of)


def read_auto_round(config: Values) -> Quantisation:
    """Raises RefusalError: bad_model, unsupported."""
    key = "packing_format" if config.has("packing_format") else "backend"
    packing = one_of(config, key, _PACKINGS, "auto_round:auto_gptq")
    refuse_present(config, ("rotation_config", "super_bits", "super_group_size"))
    if config.get("act_bits") not in (None, 16, 32):
        log.info("the config quantises activations; here only weights are, and activations are computed with in full")
    blocks = _blocks(config)
    extra = _extra_config(config)
    is_left_out = _found_in(config, "modules_to_not_convert")
    plain = _auto_round_scheme(config, config, packing)

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        if kind in ("embedding", "experts"):
            return None
        own = extra(module)
        if own is not None:
            return _auto_round_scheme(own, config, packing)
        within = kind == "linear" and (not blocks or any(module.startswith(f"{block}.") for block in blocks))
        return plain if within and not is_left_out(module) else None

    return Quantisation(where=config.file, scheme_of=scheme_of, spare_biases=True)


# ---------------------------------------------------------------- one module


def _gptq_scheme(own: Values, config: Values, zero: str) -> Scheme | None:
    """What an override leaves out is as the config has it. None: 16 bits, not quantised."""
    source = {key: own if own.has(key) else config for key in _NUMBER}
    bits = _bits(source["bits"])
    if bits is None:
        return None
    width = group_width(source["group_size"], "group_size", 128)
    source["sym"].boolean("sym", True)  # either way the zeros are stored
    ordered = source["desc_act"].boolean("desc_act") and width > 0
    return Gptq(GroupEncoding("gptq", bits, 1, width, "less_one" if zero == _ZERO_V1 else "stored", ordered))


def _awq_scheme(own: Values, config: Values) -> Scheme | None:
    source = {key: own if own.has(key) else config for key in ("bits", "group_size")}
    bits = _bits(source["bits"], key="w_bit" if config.has("w_bit") else "bits")
    if bits is None:
        return None
    if bits != 4:
        raise source["bits"].unsupported("bits", bits, "4 with AWQ")
    config.boolean("zero_point", True)  # either way the zeros are stored
    key = "q_group_size" if config.has("q_group_size") else "group_size"
    return Awq(GroupEncoding("awq", 4, 1, group_width(source["group_size"], key, 128), zero="stored"))


def _auto_round_scheme(own: Values, config: Values, packing: str) -> Scheme | None:
    source = own if own.has("data_type") else config
    if own.get("bits") in (16, 32):
        return None
    if source.get("data_type") not in (None, "int"):
        raise source.unsupported("data_type", source.get("data_type"), "'int'")
    return _awq_scheme(own, config) if packing == "awq" else _gptq_scheme(own, config, packing)


def _bits(config: Values, key: str = "bits") -> int | None:
    bits = config.get(key)
    if bits in (16, 32) and type(bits) is int:
        return None
    if bits is None:
        raise config.bad(f"{key} is missing, which says how many bits a number has")
    if type(bits) is not int or bits not in (4, 8):
        raise config.unsupported(key, bits, "4 or 8")
    return bits


# ---------------------------------------------------------------- which module


def _dynamic(config: Values) -> Override:
    """GPTQModel's `dynamic`: {"+:expression" or "expression": {...}, "-:expression": {}}; the first that matches."""
    dynamic = config.nested("dynamic")
    if dynamic is None:
        return lambda _: None
    _check_size(dynamic)
    matching = Matching(dynamic.file)
    left_out = Values({"bits": 16}, dynamic.file)
    rules: list[tuple[Any, Values]] = []
    for pattern in dynamic.names():
        own = _override(dynamic, pattern)
        expression = pattern[2:] if pattern.startswith(("-:", "+:")) else pattern
        rules.append((matching.compile(expression), left_out if pattern.startswith("-:") else own))
        _check_override(own, config)

    def override(module: str) -> Values | None:
        return next((own for expression, own in rules if matching.match(expression, module)), None)

    return override


def _extra_config(config: Values) -> Override:
    """AutoRound's `extra_config`: {"name or expression": {"bits": 16}, ...}."""
    extra = config.nested("extra_config")
    if extra is None:
        return lambda _: None
    _check_size(extra)
    matching = Matching(extra.file)
    own = {name: _override(extra, name) for name in extra.names()}
    compiled: dict[str, Any] = {}
    for name, override in own.items():
        if not override.keys():
            continue
        _check_override(override, config)
        if not _FULL_NAME.fullmatch(name):  # a name of a module is looked up, not searched for
            compiled[name] = matching.compile(name, anywhere=True)

    def of(module: str) -> Values | None:
        if module in own:
            return own[module]
        return next((own[name] for name, pattern in compiled.items() if matching.search(pattern, module)), None)

    return of


def _found_in(config: Values, key: str) -> Callable[[str], bool]:
    """A list as AutoRound reads it: names of which a part is found, as it stands or as an expression."""
    matching = Matching(f"{config.file}: {key}")
    patterns = [matching.compile(pattern, anywhere=True) for pattern in strings(config, key)]
    return lambda module: any(matching.search(pattern, module) for pattern in patterns)


def _override(config: Values, key: str) -> Values:
    value = config.nested(key)
    if value is None:
        raise config.bad(f"{shown(key)} must be an object")
    return value


def _check_override(own: Values, config: Values) -> None:
    """Before a weight is read, and once for all modules that it is of."""
    if own.get("format") not in (None, config.get("format")):
        raise own.unsupported("format", own.get("format"), "the format of the whole model")
    if own.has("bits"):
        _bits(own)


def _check_size(config: Values) -> None:
    if len(config.keys()) > PATTERNS_MAX:
        raise config.bad(f"more than {PATTERNS_MAX} entries")


def _nested_strings(config: Values, key: str) -> frozenset[str]:
    """A list of lists of names, or one list."""
    value = config.get(key)
    if is_absent(value):
        return frozenset()
    lists: Any = value if isinstance(value, list) else [value]
    flat = [name for item in lists for name in (item if isinstance(item, list) else [item])]
    if not all(isinstance(name, str) for name in flat) or len(flat) > PATTERNS_MAX:
        raise config.bad(f"{key} must be a list of lists of names, not {shown(value)}")
    return frozenset(flat)


def _blocks(config: Values) -> frozenset[str]:
    """`block_name_to_quantize`: names of layer lists, in a list or with commas between them."""
    for key in ("quant_block_list", "block_name_to_quantize", "to_quant_block_names"):
        value = config.get(key)
        if isinstance(value, str):
            return frozenset(name.strip().rstrip(".") for name in value.split(","))
        if not is_absent(value):
            return frozenset(_block_of(name) for name in _nested_strings(config, key))
    return frozenset()


def _block_of(name: str) -> str:
    """A list of layers may be given by naming each of them."""
    head, _, last = name.rstrip(".").rpartition(".")
    return head if last.isdecimal() else name.rstrip(".")
