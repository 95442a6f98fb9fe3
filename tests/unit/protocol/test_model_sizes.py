"""Bytes of weights come from their tensors, each by its own encoding; bytes of a route from its dtype."""

from typing import get_args

import attrs
import pytest

from hydra.protocol.model.dtype import DTYPE_BYTES, Dtype
from hydra.protocol.model.encoding import (
    BF16,
    BLOCK_ENCODINGS,
    F32,
    NAMED_ENCODINGS,
    PLAIN_ENCODINGS,
    GroupEncoding,
    PlainEncoding,
    encoding_of,
)
from hydra.protocol.model.part_size import PartSize, stored_size, tensor_size, total_size
from hydra.simulation.pocket_model import pocket_spec


@pytest.mark.parametrize(("name", "item_bytes"), [("F32", 4), ("BF16", 2), ("F16", 2)])
def test_an_encoding_knows_the_bytes_of_a_shape(name, item_bytes):
    known = PLAIN_ENCODINGS[name]
    assert [known.n_bytes(shape) for shape in ((), (7,), (3, 0), (2, 3, 5))] == [item_bytes * n for n in (1, 7, 0, 30)]
    assert known.name == name


def test_every_dtype_is_stored_plainly_under_one_name():
    assert {PlainEncoding(dtype) for dtype in get_args(Dtype)} == set(PLAIN_ENCODINGS.values())
    assert set(DTYPE_BYTES) == set(get_args(Dtype))


GROUPED = (
    GroupEncoding("packed", 4, 1, 32, "stored"),
    GroupEncoding("gptq", 4, 1, 128, "less_one", ordered=True),
    GroupEncoding("float8", 8, 128, 128),
    GroupEncoding("float8", 8, 0, 0),
    GroupEncoding("nf4", 4, 1, 64, nested=True),
)


@pytest.mark.parametrize("known", [*NAMED_ENCODINGS.values(), *GROUPED], ids=lambda known: known.name)
def test_an_encoding_is_made_anew_from_its_name(known):
    assert encoding_of(known.name) == known


@pytest.mark.parametrize("name", ["", "F64", "gptq", "gptq:3:1x32", "x:4:1x32", "gptq:4:1x32:ordered:stored", "q4_0"])
def test_a_name_that_none_has_is_refused(name):
    with pytest.raises(ValueError, match="no encoding is called"):
        encoding_of(name)


def test_what_is_kept_as_it_is_stored_does_not_grow_with_the_dtype():
    size = total_size([tensor_size(BLOCK_ENCODINGS["Q4_1"], (10, 64)), tensor_size(F32, (64,))])
    assert size == PartSize(64, 10 * 40 + 256, 10 * 40)
    assert size.memory_bytes("float32") - size.memory_bytes("float16") == 128
    scales = 128 * 2 * 2 + 128 * 2  # of two bytes, with a zero of one
    assert GROUPED[1].kept_bytes((128, 256)) == 128 * 128 + scales + 8 * 256
    table = 16 * 4
    assert GroupEncoding("nvfp4", 4, 1, 16).kept_bytes((128, 256)) == 128 * 128 + 128 * 16 * 2 + table
    assert GROUPED[2].n_groups((130, 128)) == 2 and GROUPED[3].n_groups((130, 128)) == 1


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="no whole blocks of Q6_K"):
        BLOCK_ENCODINGS["Q6_K"].n_bytes((4, 384))


def test_what_is_stored_and_what_is_computed_are_counted_apart():
    """A layer whose norms are stored in float32 and whose matrices are not."""
    layer = total_size([stored_size(1000, BF16), stored_size(10, F32)])
    assert layer == PartSize(1010, 2040)
    assert (layer.memory_bytes("float32"), layer.memory_bytes("float16")) == (4040, 2020)
    assert total_size([]) == PartSize(0, 0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_slice_is_the_sum_of_its_parts(tied):
    sizes = tuple(PartSize(10**n, 3 * 10**n) for n in range(4))
    ends = {"embedding_size": PartSize(50_000, 7), "head_size": PartSize(0 if tied else 600_000, 1)}
    spec = attrs.evolve(pocket_spec(4), layer_sizes=sizes, norm_size=PartSize(7_000_000, 0), tied=tied, **ends)
    assert spec.slice_size(1, 3).numbers == 110 and spec.slice_size(1, 3).stored_bytes == 330
    assert spec.slice_size(0, 2) == PartSize(50_011, 40)
    head = 50_000 if tied else 600_000
    assert spec.slice_size(3, 4).numbers == 7_001_000 + head
    assert spec.slice_size(0, 4).numbers == 7_051_111 + (0 if tied else 600_000), "a tied embedding is there once"
    assert spec.slice_bytes(1, 3, "bfloat16") == 220 and spec.slice_bytes(1, 3, "float32") == 440
