"""Small quantised checkpoints: the tensors that each library writes, and the config that it writes beside them.

Only shapes and dtypes are theirs; what the numbers are, describing never looks at.
"""

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB, LAYERS = 256, 384, 4, 2, 64, 2
KEYS = HIDDEN // HEADS * KV_HEADS
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "torch_dtype": "float16",
}
F8, E8 = torch.float8_e4m3fn, torch.float8_e8m0fnu
Tensors = dict[str, Tensor]  # by suffix behind a module's name
Pack = Callable[[int, int], Tensors]


def ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def halves(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float16)


def floats(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float32)


def octets(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def eights(*shape: int, dtype: torch.dtype = F8) -> Tensor:
    return octets(*shape).view(dtype)


def order(columns: int) -> Tensor:
    return torch.arange(columns, dtype=torch.int32) // 128


def packed(rows: int, columns: int, *, bits: int = 4, group: int = 128, zero: bool = False) -> Tensors:
    groups = columns // group if group else 1
    tensors = {
        ".weight_packed": ints(rows, -(-columns * bits // 32)),
        ".weight_scale": halves(rows, groups),
        ".weight_shape": torch.tensor([rows, columns]),
    }
    return tensors | ({".weight_zero_point": ints(rows * bits // 32, groups)} if zero else {})


def gptq(rows: int, columns: int, *, bits: int = 4, group: int = 128) -> Tensors:
    groups = columns // group if group else 1
    return {
        ".qweight": ints(columns * bits // 32, rows),
        ".qzeros": ints(groups, rows * bits // 32),
        ".scales": halves(groups, rows),
        ".g_idx": order(columns),
    }


def awq(rows: int, columns: int) -> Tensors:
    groups = columns // 128
    return {".qweight": ints(columns, rows // 8), ".qzeros": ints(groups, rows // 8), ".scales": halves(groups, rows)}


def nf4(rows: int, columns: int, *, nested: bool) -> Tensors:
    blocks = rows * columns // 64
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [rows, columns], "nested_blocksize": 256,
                        "nested_offset": 0.5}).encode()  # fmt: skip
    tensors = {
        ".weight": octets(rows * columns // 2, 1),
        ".weight.absmax": octets(blocks) if nested else floats(blocks),
        ".weight.quant_map": floats(16),
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }
    if nested:
        tensors |= {".weight.nested_absmax": floats(-(-blocks // 256)), ".weight.nested_quant_map": floats(256)}
    return tensors


def float8(scale: str, *shape: int | None) -> Pack:
    """Scales of this name and shape; None: the rows, -1 and -2: tiles of 128 down and across."""

    def pack(rows: int, columns: int) -> Tensors:
        known = {None: rows, -1: -(-rows // 128), -2: -(-columns // 128)}
        return {".weight": eights(rows, columns), scale: floats(*(known.get(side, side) for side in shape))}

    return pack


def compressed(format_: str, weights: dict, **more: object) -> dict:
    """As llm-compressor writes it."""
    return {
        "config_groups": {
            "group_0": {
                "format": format_,
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {"dynamic": False, "observer": "minmax", "observer_kwargs": {}, "symmetric": True} | weights,
            }
        },
        "format": format_,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
        **more,
    }


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "actorder": None}
GPTQ = {
    "bits": 4,
    "group_size": 128,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": ["gptqmodel:5.0.0"], "damp_percent": 0.05, "static_groups": False},
}
AWQ = {
    "quant_method": "awq",
    "zero_point": True,
    "group_size": 128,
    "bits": 4,
    "version": "gemm",
    "modules_to_not_convert": None,
}
AUTO_ROUND = {
    "autoround_version": "0.8.0",
    "bits": 4,
    "block_name_to_quantize": "model.layers",
    "data_type": "int",
    "group_size": 128,
    "iters": 200,
    "packing_format": "auto_round:auto_gptq",
    "quant_method": "auto-round",
    "sym": True,
}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.embed_tokens", "model.norm", "model.layers.0.input_layernorm"],
}
NF4 = {
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": ["lm_head"],
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}


@attrs.frozen
class Checkpoint:
    """`sides` is what a matrix of 256 x 256 must be described as: (side, suffix, encoding, shape)."""

    config: dict
    pack: Pack
    sides: tuple[tuple[str, str, str, tuple[int, ...]], ...]


def _w(suffix: str, encoding: str) -> tuple[str, str, str, tuple[int, ...]]:
    return "values", suffix, encoding, (256, 256)


STATE_BYTES = nf4(256, 256, nested=True)[".weight.quant_state.bitsandbytes__nf4"].numel()
SHAPE = ("shape", ".weight_shape", "I64", (2,))
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
CHECKPOINTS = {
    "packed": Checkpoint(
        compressed("pack-quantized", INT4),
        packed,
        (_w(".weight_packed", "packed:4:1x128"), ("scale", ".weight_scale", "F16", (256, 2)), SHAPE),
    ),
    "packed, with zeros": Checkpoint(
        compressed("pack-quantized", INT4 | {"symmetric": False}),
        lambda rows, columns: packed(rows, columns, zero=True),
        (
            _w(".weight_packed", "packed:4:1x128:stored"),
            ("scale", ".weight_scale", "F16", (256, 2)),
            ("zero", ".weight_zero_point", "I32", (32, 2)),
            SHAPE,
        ),
    ),
    "packed, ordered": Checkpoint(
        compressed("pack-quantized", INT4 | {"actorder": "group"}),
        lambda rows, columns: packed(rows, columns) | {".weight_g_idx": order(columns)},
        (
            _w(".weight_packed", "packed:4:1x128:ordered"),
            ("scale", ".weight_scale", "F16", (256, 2)),
            ("order", ".weight_g_idx", "I32", (256,)),
            SHAPE,
        ),
    ),
    "packed, 8 bits by row": Checkpoint(
        compressed("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}),
        lambda rows, columns: packed(rows, columns, bits=8, group=0),
        (_w(".weight_packed", "packed:8:1x0"), ("scale", ".weight_scale", "F16", (256, 1)), SHAPE),
    ),
    "int8": Checkpoint(
        compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        lambda rows, columns: {".weight": octets(rows, columns).view(torch.int8), ".weight_scale": halves(rows, 1)},
        (_w(".weight", "int8:8:1x0"), ("scale", ".weight_scale", "F16", (256, 1))),
    ),
    "int8 by tensor, with zeros": Checkpoint(
        compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}),
        lambda rows, columns: {
            ".weight": octets(rows, columns).view(torch.int8),
            ".weight_scale": halves(1),
            ".weight_zero_point": octets(1).view(torch.int8),
        },
        (
            _w(".weight", "int8:8:0x0:stored"),
            ("scale", ".weight_scale", "F16", (1,)),
            ("zero", ".weight_zero_point", "I8", (1,)),
        ),
    ),
    "float8 by row": Checkpoint(
        compressed("float-quantized", FLOAT8),
        float8(".weight_scale", None, 1),
        (_w(".weight", "float8:8:1x0"), ("scale", ".weight_scale", "F32", (256, 1))),
    ),
    "float8 by tensor": Checkpoint(
        compressed("float-quantized", FLOAT8 | {"strategy": "tensor"}),
        lambda rows, columns: float8(".weight_scale", 1)(rows, columns) | {".input_scale": floats(1)},
        (_w(".weight", "float8:8:0x0"), ("scale", ".weight_scale", "F32", (1,))),
    ),
    "float8 in tiles": Checkpoint(
        compressed("float-quantized", FLOAT8 | {"strategy": "block", "block_structure": [128, 128]}),
        float8(".weight_scale", -1, -2),
        (_w(".weight", "float8:8:128x128"), ("scale", ".weight_scale", "F32", (2, 2))),
    ),
    "nvfp4": Checkpoint(
        compressed(
            "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        ),
        lambda rows, columns: {
            ".weight_packed": octets(rows, columns // 2),
            ".weight_scale": eights(rows, columns // 16),
            ".weight_global_scale": floats(1),
            ".input_global_scale": floats(1),
        },
        (
            _w(".weight_packed", "nvfp4:4:1x16"),
            ("scale", ".weight_scale", "F8_E4M3", (256, 16)),
            ("second_scale", ".weight_global_scale", "F32", (1,)),
        ),
    ),
    "mxfp4, packed": Checkpoint(
        compressed("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
        lambda rows, columns: {
            ".weight_packed": octets(rows, columns // 2),
            ".weight_scale": octets(rows, columns // 32),
        },
        (_w(".weight_packed", "mxfp4:4:1x32"), ("scale", ".weight_scale", "U8", (256, 8))),
    ),
    "fp8": Checkpoint(
        FP8,
        float8(".weight_scale_inv", -1, -2),
        (_w(".weight", "float8:8:128x128"), ("scale", ".weight_scale_inv", "F32", (2, 2))),
    ),
    "fp8 by tensor": Checkpoint(
        FP8 | {"weight_block_size": None, "activation_scheme": "static"},
        lambda rows, columns: float8(".weight_scale_inv")(rows, columns) | {".activation_scale": floats()},
        (_w(".weight", "float8:8:0x0"), ("scale", ".weight_scale_inv", "F32", ())),
    ),
    "fp8, exponents": Checkpoint(
        FP8 | {"scale_fmt": "ue8m0"},
        lambda rows, columns: {
            ".weight": eights(rows, columns),
            ".weight_scale_inv": eights(-(-rows // 128), -(-columns // 128), dtype=E8),
        },
        (_w(".weight", "float8:8:128x128"), ("scale", ".weight_scale_inv", "F8_E8M0", (2, 2))),
    ),
    "gptq": Checkpoint(
        GPTQ,
        gptq,
        (
            _w(".qweight", "gptq:4:1x128:less_one"),
            ("scale", ".scales", "F16", (2, 256)),
            ("zero", ".qzeros", "I32", (2, 32)),
            ("order", ".g_idx", "I32", (256,)),
        ),
    ),
    "gptq, ordered": Checkpoint(
        GPTQ | {"desc_act": True, "checkpoint_format": "gptq_v2"},
        gptq,
        (
            _w(".qweight", "gptq:4:1x128:stored:ordered"),
            ("scale", ".scales", "F16", (2, 256)),
            ("zero", ".qzeros", "I32", (2, 32)),
            ("order", ".g_idx", "I32", (256,)),
        ),
    ),
    "gptq, 8 bits by row": Checkpoint(
        GPTQ | {"bits": 8, "group_size": -1, "desc_act": True},
        lambda rows, columns: gptq(rows, columns, bits=8, group=0),
        (
            _w(".qweight", "gptq:8:1x0:less_one"),
            ("scale", ".scales", "F16", (1, 256)),
            ("zero", ".qzeros", "I32", (1, 64)),
        ),
    ),
    "auto-round": Checkpoint(
        AUTO_ROUND,
        gptq,
        (
            _w(".qweight", "gptq:4:1x128:less_one"),
            ("scale", ".scales", "F16", (2, 256)),
            ("zero", ".qzeros", "I32", (2, 32)),
            ("order", ".g_idx", "I32", (256,)),
        ),
    ),
    "auto-round as awq": Checkpoint(
        AUTO_ROUND | {"packing_format": "auto_round:auto_awq", "quant_method": "intel/auto-round"},
        awq,
        (
            _w(".qweight", "awq:4:1x128:stored"),
            ("scale", ".scales", "F16", (2, 256)),
            ("zero", ".qzeros", "I32", (2, 32)),
        ),
    ),
    "awq": Checkpoint(
        AWQ,
        awq,
        (
            _w(".qweight", "awq:4:1x128:stored"),
            ("scale", ".scales", "F16", (2, 256)),
            ("zero", ".qzeros", "I32", (2, 32)),
        ),
    ),
    "nf4": Checkpoint(
        NF4,
        lambda rows, columns: nf4(rows, columns, nested=True),
        (
            _w(".weight", "nf4:4:1x64:nested"),
            ("scale", ".weight.absmax", "U8", (1024,)),
            ("table", ".weight.quant_map", "F32", (16,)),
            ("second_offset", ".weight.quant_state.bitsandbytes__nf4", "U8", (STATE_BYTES,)),
            ("second_scale", ".weight.nested_absmax", "F32", (4,)),
            ("second_table", ".weight.nested_quant_map", "F32", (256,)),
        ),
    ),
    "nf4, plain scales": Checkpoint(
        NF4 | {"bnb_4bit_use_double_quant": False},
        lambda rows, columns: nf4(rows, columns, nested=False),
        (
            _w(".weight", "nf4:4:1x64"),
            ("scale", ".weight.absmax", "F32", (1024,)),
            ("table", ".weight.quant_map", "F32", (16,)),
            ("second_offset", ".weight.quant_state.bitsandbytes__nf4", "U8", (STATE_BYTES,)),
        ),
    ),
}


def plain(rows: int, columns: int) -> Tensors:
    return {".weight": halves(rows, columns)}


def tensors_of(
    pack: Pack, own: dict[str, Pack] | None = None, prefix: str = "model.", head: str = "lm_head"
) -> Tensors:
    """Of the whole model; `own` packs modules, by their names without the prefix, in another way."""
    packs = {"embed_tokens": plain, head: plain, **(own or {})}
    tensors = {f"{prefix}norm.weight": halves(HIDDEN)}
    modules = {"embed_tokens": (VOCAB, HIDDEN), head: (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}layers.{layer}.{norm}.weight"] = halves(HIDDEN)
        modules |= {f"layers.{layer}.{name}": shape for name, shape in LINEARS.items()}
    for module, shape in modules.items():
        full = module if module == head else prefix + module
        tensors |= {full + suffix: tensor for suffix, tensor in packs.get(module, pack)(*shape).items()}
    return tensors


def write(directory: Path, quantization_config: dict | None, tensors: Tensors, **config: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    said = CONFIG | ({} if quantization_config is None else {"quantization_config": quantization_config}) | config
    (directory / "config.json").write_text(json.dumps(said))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_checkpoint(directory: Path, name: str) -> Path:
    checkpoint = CHECKPOINTS[name]
    return write(directory, checkpoint.config, tensors_of(checkpoint.pack))
