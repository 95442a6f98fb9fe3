"""gpt-oss with its experts in MXFP4 computes what the plain model of the same numbers does, whole and in stages."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hydra.kernels.step.runner import Runner
from tests.unit.kernels.bench import LIBRARY, Pipeline, Published, Row, order, prompt, quiet
from tests.unit.kernels.family_models import SHAPES, random_model

CODES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def mxfp4(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[experts, columns, rows] as transformers has it to blocks, scales, and the numbers that they stand for."""
    lying = matrices.transpose(1, 2).contiguous()
    groups = lying.unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True) / 4))
    codes = (groups.div(torch.exp2(exponents)).unsqueeze(-1) - CODES).abs().argmin(-1)
    numbers = (CODES[codes] * torch.exp2(exponents)).flatten(2)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return blocks, (exponents.squeeze(-1) + 127).to(torch.uint8), numbers.transpose(1, 2).contiguous()


def write(path: Path, config: dict, tensors: dict[str, Tensor]) -> Published:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return Published(path, LIBRARY.describe(str(path)), None)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Published, Published]:
    """(encoded, plain)."""
    root = tmp_path_factory.mktemp("experts")
    shape = next(shape for shape in SHAPES if shape.name == "GptOss-window")
    random_model(shape, 0.5, intermediate_size=64).save_pretrained(root / "reference")
    config = json.loads((root / "reference/config.json").read_text())
    plain = {name: one for file in (root / "reference").glob("*.safetensors") for name, one in load_file(file).items()}
    encoded = dict(plain)
    for name in [name for name in plain if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        encoded[f"{name}_blocks"], encoded[f"{name}_scales"], plain[name] = mxfp4(encoded.pop(name))
    quantised = {**config, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": KEPT}}
    return write(root / "encoded", quantised, encoded), write(root / "plain", config, plain)


@pytest.mark.parametrize("cuts", [(), (1, 2, 3)], ids=["one stage", "four stages"])
def test_tokens_are_those_of_the_decoded_model(both, cuts):
    drawn = [
        Pipeline(model, cuts, kv_blocks=40, dtype="float32").generate(Row(prompt(3, 44), list(range(40))), 64, chunk=16)
        for model in both
    ]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 10


def test_experts_are_held_encoded(both):
    encoded, plain = (Runner("cpu").load(order(model, 1, 2, dtype="float32"), quiet).weight_bytes for model in both)
    assert encoded == both[0].spec.slice_bytes(1, 2, "float32")
    assert encoded < plain / 2
