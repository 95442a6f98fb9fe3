"""The part of config.json that says how weights are quantised, by the method that it names.

Promises: what cannot be read is refused by its name, with what to use instead, before a weight is looked at. Refuses to
know tensors.
"""

from collections.abc import Callable, Mapping

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown
from hydra.store.models.config_values import Values
from hydra.store.models.quantised.compressed_tensors import read_compressed_tensors
from hydra.store.models.quantised.gptq import read_auto_round, read_awq, read_gptq
from hydra.store.models.quantised.other_configs import read_bitsandbytes, read_fp8, read_mxfp4
from hydra.store.models.quantised.quantisation import Quantisation

METHODS: Mapping[str, Callable[[Values], Quantisation]] = {
    "compressed-tensors": read_compressed_tensors,
    "compressed_tensors": read_compressed_tensors,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "auto-round": read_auto_round,
    "auto_round": read_auto_round,
    "intel/auto-round": read_auto_round,
    "awq": read_awq,
    "mxfp4": read_mxfp4,
    "bitsandbytes": read_bitsandbytes,
}
USE_INSTEAD = (
    "a checkpoint of the same model in FP8, compressed-tensors, GPTQ, AutoRound, AWQ, MXFP4 or bitsandbytes nf4, a "
    "GGUF file, or its weights in full precision"
)
_OTHER_METHODS: Mapping[str, str] = {
    "exl2": "EXL2",
    "exl3": "EXL3",
    "hqq": "HQQ",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "spqr": "SpQR",
    "vptq": "VPTQ",
    "marlin": "weights packed for Marlin",
    "gptq_marlin": "weights packed for Marlin",
    "awq_marlin": "weights packed for Marlin",
    "quanto": "quanto",
    "eetq": "EETQ",
    "higgs": "HIGGS",
    "quip": "QuIP#",
    "bitnet": "BitNet",
    "fbgemm_fp8": "fbgemm FP8",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt_fp4": "NVIDIA ModelOpt",
    "nvfp4": "NVIDIA ModelOpt",
    "mxfp8": "MXFP8",
    "quark": "AMD Quark",
    "fp_quant": "FPQuant",
    "sinq": "SINQ",
    "metal": "Metal",
    "qqq": "QQQ",
    "deepspeedfp": "DeepSpeed FP",
    "gguf": "GGUF weights inside of a directory",
}


def read_quantisation(config: Values) -> Quantisation | None:
    """None: nothing is quantised. Raises RefusalError: bad_model, unsupported."""
    if config.has("quantization"):  # MLX writes it twice, under this key and the usual one
        raise _unsupported(config, "quantization", config.get("quantization"), "weights packed for MLX")
    keys = [key for key in ("quantization_config", "compression_config") if config.has(key)]
    if not keys:
        return None
    key = keys[0]
    own = config.nested(key)
    assert own is not None
    method = _method(own)
    if method is None:
        raise config.unsupported(f"{key}: quant_method", own.get("quant_method"), " or ".join(map(repr, METHODS)))
    if method not in METHODS:
        raise _unsupported(
            config, f"{key}: quant_method", method, _OTHER_METHODS.get(method, "a method not known here")
        )
    return METHODS[method](own)


def _method(own: Values) -> str | None:
    """Old configs leave it out, and are known by what they say."""
    method = own.get("quant_method")
    if method is None and (own.has("load_in_4bit") or own.has("load_in_8bit")):
        return "bitsandbytes"
    if method is None and own.has("config_groups"):
        return "compressed-tensors"
    return method.lower() if isinstance(method, str) else None


def _unsupported(config: Values, key: str, value: object, name: str) -> RefusalError:
    return refuse(
        "unsupported",
        f"{config.file}: {key} is {shown(value)}: {name}, which is not read. Use {USE_INSTEAD}.",
    )
