"""Every kind of quantised checkpoint computes what the plain model of its decoded numbers does, whole and in stages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hydra.kernels.step import runner
from hydra.kernels.step.runner import Runner
from hydra.kernels.weights.encoded_rows import EncodedExperts, EncodedRows
from hydra.kernels.weights.part_reader import fetch_parts
from tests.sample import plays_all
from tests.unit.kernels.bench import LIBRARY, Pipeline, Published, Row, order, prompt, quiet
from tests.unit.store.quantised.checkpoints import CHECKPOINTS, VOCAB, write_checkpoint

PROMPTS = 12 if plays_all() else 6
KEPT = ("g_idx", "weight_g_idx", "weight_shape", "bitsandbytes__nf4")


def filled(name: str, like: Tensor, random: torch.Generator) -> Tensor:
    """Content that a library could have written, for numbers of about 0.05."""

    def octets(low: int, high: int) -> Tensor:
        return torch.randint(low, high, like.shape, dtype=torch.uint8, generator=random)

    last = name.rpartition(".")[2]
    if last in KEPT:
        return like
    if like.dtype in (torch.uint8, torch.int8) and last != "weight_zero_point":
        return octets(*((120, 124) if last == "weight_scale" else (0, 255))).view(like.dtype)
    if like.dtype == torch.float8_e4m3fn:
        positive = octets(0x20, 0x40)
        signs = octets(0, 2) << 7 if last == "weight" else 0
        return (positive | signs).view(like.dtype)
    if like.dtype == torch.float8_e8m0fnu:
        return octets(120, 124).view(like.dtype)
    if last in ("qzeros", "weight_zero_point"):  # of about the middle, none of them the greatest
        return torch.full_like(like, 0x77777777 if like.dtype == torch.int32 else 3)
    if like.dtype == torch.int32:
        return torch.randint(-(2**31), 2**31, like.shape, generator=random).to(torch.int32)
    if "norm" in name and last == "weight":
        return torch.rand(like.shape, generator=random).add_(0.5).to(like.dtype)
    if last == "weight":
        spread = 1.0 if "embed" in name else 0.1
        return torch.randn(like.shape, generator=random).mul_(spread).to(like.dtype)
    if last in ("quant_map", "nested_quant_map"):
        return torch.linspace(-1.0 if last == "quant_map" else 0.0, 1.0, like.numel()).view(like.shape)
    if last == "weight_global_scale":
        return torch.full_like(like, 8.0)
    return torch.rand(like.shape, generator=random).mul_(0.02).add_(0.002).to(like.dtype)


def published(path: Path, name: str) -> Published:
    directory = write_checkpoint(path, name)
    random = torch.Generator().manual_seed(5)
    for file in directory.glob("*.safetensors"):
        save_file({name: filled(name, one, random) for name, one in load_file(file).items()}, file)
    return Published(directory, LIBRARY.describe(str(directory)), None)


def decoded(rows: EncodedRows) -> Tensor:
    return torch.cat([one if isinstance(one, Tensor) else one.decode(torch.float32) for one in rows.pieces])


def fetch_decoded(*arguments):
    """What the reader read, as the plain matrices that it stands for."""
    parts, read_bytes = fetch_parts(*arguments)
    for part, weights in parts.items():
        plain = dict(weights)
        for role, one in weights.items():
            if isinstance(one, EncodedRows):
                plain[role] = decoded(one)
            elif isinstance(one, EncodedExperts):
                plain[role] = torch.stack([decoded(rows) for rows in one.experts])
        parts[part] = plain
    return parts, read_bytes


def generated(model: Published, cuts: tuple[int, ...]) -> list[int]:
    line = Pipeline(model, cuts, kv_blocks=48, dtype="float32")
    rows = [Row(prompt(seed, 10, VOCAB), [3 * seed + block for block in range(3)]) for seed in range(PROMPTS)]
    return [token for row in rows for token in line.generate(row, 2)]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_computes_what_its_decoded_numbers_do(name, tmp_path, monkeypatch):
    """And each stage reads its own ranges, and holds what was planned."""
    model = published(tmp_path, name)
    for first, end in ((0, 1), (0, 2)):
        facts = Runner("cpu").load(order(model, first, end), quiet)
        assert facts.read_bytes == sum(source.length for source in model.ranges(first, end))
        planned = model.spec.slice_bytes(first, end, "float32")
        assert planned * 0.9 <= facts.weight_bytes <= planned * 1.01 + 2048
    encoded = [generated(model, cuts) for cuts in ((), (1,))]
    monkeypatch.setattr(runner, "fetch_parts", fetch_decoded)
    assert encoded[0] == encoded[1] == generated(model, ())
    assert len(set(encoded[0])) > 3, "a model that says the same thing all the time shows nothing"
