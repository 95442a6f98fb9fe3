"""The configs of native FP8, of gpt-oss's MXFP4 and of bitsandbytes. All three name what stays in full precision in one
list, which transformers matches with every module's name.
"""

import structlog

from hydra.protocol.model.encoding import GroupEncoding
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.quantised.float_schemes import Float8, Mxfp4Blocks
from hydra.store.models.quantised.name_patterns import Skips
from hydra.store.models.quantised.nf4_scheme import Nf4
from hydra.store.models.quantised.quantisation import ModuleKind, Quantisation
from hydra.store.models.quantised.scheme import Scheme
from hydra.store.models.quantised.words import GROUP_MAX, refuse_present, strings

log = structlog.get_logger()


def read_fp8(config: Values) -> Quantisation:
    """Raises RefusalError: bad_model, unsupported."""
    refuse_present(config, ("modules_to_convert",))
    if config.get("expert_dtype") not in (None, "fp8"):
        raise config.unsupported("expert_dtype", config.get("expert_dtype"), "'fp8'")
    if config.get("fmt") not in (None, "e4m3"):
        raise config.unsupported("fmt", config.get("fmt"), "'e4m3'")
    if config.get("scale_fmt") not in (None, "float", "ue8m0"):
        raise config.unsupported("scale_fmt", config.get("scale_fmt"), "'float' or 'ue8m0'")
    if config.get("activation_scheme") not in (None, "dynamic", "static"):
        raise config.unsupported("activation_scheme", config.get("activation_scheme"), "'dynamic' or 'static'")
    log.info("activations are computed with in full: activation_scheme is passed over, only weights are float8")
    encoding = GroupEncoding("float8", 8, *_tile(config))
    linear = Float8(encoding, ".weight_scale_inv")
    experts = Float8(encoding, "_scale_inv", fused=True)
    key = "ignored_layers" if not config.has("modules_to_not_convert") else "modules_to_not_convert"
    skips, head_is_plain = _skips(config, key)

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        if kind == "embedding" or (kind == "head" and head_is_plain):
            return None
        if kind == "experts":
            return None if skips.skip(module.rpartition(".")[0]) else experts
        return None if skips.skip(module) else linear

    return Quantisation(where=config.file, scheme_of=scheme_of)


def _tile(config: Values) -> tuple[int, int]:
    """Rows and columns that have one scale; absent is as transformers has it, null is all of the matrix."""
    if config.says_null("weight_block_size"):
        return 0, 0
    block = [128, 128] if config.get("weight_block_size") is None else config.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n <= GROUP_MAX for n in block):
        raise config.bad(f"weight_block_size must be two numbers, rows and columns, not {shown(block)}")
    return block[0], block[1]


def read_mxfp4(config: Values) -> Quantisation:
    """gpt-oss's: only what all experts have in one tensor."""
    scheme = Mxfp4Blocks(GroupEncoding("mxfp4", 4, 1, 32))
    skips, _ = _skips(config, "modules_to_not_convert")

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        return scheme if kind == "experts" and not skips.skip(module.rpartition(".")[0]) else None

    return Quantisation(where=config.file, scheme_of=scheme_of)


def read_bitsandbytes(config: Values) -> Quantisation:
    """Raises RefusalError: unsupported for int8 and fp4."""
    if config.boolean("load_in_8bit") or config.boolean("_load_in_8bit"):
        raise config.unsupported("load_in_8bit", True, "load_in_4bit with bnb_4bit_quant_type 'nf4'")
    if not (config.boolean("load_in_4bit") or config.boolean("_load_in_4bit")):
        raise config.unsupported("load_in_4bit", False, "load_in_4bit with bnb_4bit_quant_type 'nf4'")
    kind_of_code = config.get("bnb_4bit_quant_type")
    if kind_of_code != "nf4":
        raise config.unsupported("bnb_4bit_quant_type", kind_of_code or "fp4", "'nf4'")
    scheme = Nf4(nested=config.boolean("bnb_4bit_use_double_quant"))
    skips, head_is_plain = _skips(config, "llm_int8_skip_modules")

    def scheme_of(module: str, kind: ModuleKind) -> Scheme | None:
        if kind in ("embedding", "experts") or (kind == "head" and head_is_plain):
            return None
        return None if skips.skip(module) else scheme

    return Quantisation(where=config.file, scheme_of=scheme_of)


def _skips(config: Values, key: str) -> tuple[Skips, bool]:
    """Which modules are left out, and whether the head is because there is no list."""
    return Skips.of(strings(config, key), f"{config.file}: {key}"), not config.has(key)
