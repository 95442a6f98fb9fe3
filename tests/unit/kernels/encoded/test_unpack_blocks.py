"""GGUF's blocks that become groups mean the same in both forms; and what unpacking needs of memory for a moment."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hydra.kernels.weights.encoded import code_bytes
from hydra.kernels.weights.encoded.block_decoders import decode_blocks
from hydra.kernels.weights.encoded.unpack import UNPACKED_BLOCKS, unpack_blocks, unpack_matrix
from hydra.protocol.model.encoding import BLOCK_ENCODINGS
from tests.unit.kernels.encoded.published import NAME, as_read, grouped, same_bits


def any_bytes(name: str, rows: int, blocks: int) -> torch.Tensor:
    generator = np.random.default_rng(len(name))
    return torch.from_numpy(
        generator.integers(0, 256, (rows, blocks * BLOCK_ENCODINGS[name].block_bytes), dtype=np.uint8)
    )


@pytest.mark.parametrize("name", sorted(UNPACKED_BLOCKS))
@pytest.mark.parametrize("piece_numbers", [64, 1 << 18])
def test_blocks_as_groups(name, piece_numbers, monkeypatch):
    monkeypatch.setattr(code_bytes, "PIECE_NUMBERS", piece_numbers)
    data = any_bytes(name, 300 if name == "MXFP4" else 7, 3)
    expected, matrix = decode_blocks(name, data), unpack_blocks(name, data)
    assert same_bits(matrix.decode(torch.float32), expected)
    assert (matrix.rows, matrix.columns, matrix.group_columns) == (len(data), 96, 32)
    assert same_bits(matrix.take(torch.tensor([6, 1])).decode(torch.float32), expected[[6, 1]])
    kept = BLOCK_ENCODINGS[name].kept_bytes((len(data), 96))
    assert matrix.n_bytes <= kept * 1.06 + 64


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made inside and still alive, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[object, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.alive = {place: one for place, one in self.alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def published(encoding: str, rows: int, columns: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Zeros where their contents do not matter."""
    scheme, bits = encoding.split(":")[:2]
    values = torch.zeros(rows * columns * int(bits) // 8, dtype=torch.uint8)
    by_row, by_group = torch.ones(rows, columns // 64, dtype=torch.float16), torch.ones(columns // 64, rows)
    sides = {
        "packed": {"scale": by_row, "order": torch.arange(columns).flip(0).int() // 64},
        "gptq": {"scale": by_group, "zero": torch.zeros(columns // 64, rows * int(bits) // 32, dtype=torch.int32)},
        "awq": {"scale": by_group, "zero": torch.zeros(columns // 64, rows // 8, dtype=torch.int32)},
        "nf4": {"scale": torch.ones(rows * columns // 64), "table": torch.zeros(16)},
        "int8": {"scale": by_row, "zero": torch.ones(rows, columns // 64, dtype=torch.int8)},
    }
    return values, sides[scheme]


@pytest.mark.parametrize(
    "encoding",
    ["packed:4:1x64:ordered", "packed:8:1x64:ordered", "gptq:4:1x64:stored", "gptq:8:1x64:less_one",
     "awq:4:1x64:stored", "nf4:4:1x64", "int8:8:1x64:stored"],
)  # fmt: skip
def test_no_more_than_one_matrix_is_there_for_a_moment(encoding, monkeypatch):
    monkeypatch.setattr(code_bytes, "PIECE_NUMBERS", 1 << 14)
    values, sides = published(encoding, 512, 1024)
    raw, stored = as_read(values, **sides)
    given = sum(tensor.nbytes for tensor in raw.values())
    with LiveBytes() as live:  # which sees what is given as soon as it is looked at
        matrix = unpack_matrix(grouped(encoding), (512, 1024), raw, stored, name=NAME)
    assert matrix.n_bytes < live.peak <= given + matrix.n_bytes + values.nbytes * 1.1 + 4 * (1 << 14)


def test_the_measure_sees_a_copy_too_many():
    with LiveBytes() as live:
        one = torch.zeros(1000)
        both = one + 1, one + 2
        del both
        one + 3
    assert live.peak == 12000
