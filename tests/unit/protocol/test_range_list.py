"""The folded form of tensor ranges: it says everything again, is short, and is not believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydra.protocol import codec
from hydra.protocol.model.encoding import F16, GroupEncoding
from hydra.protocol.model.model_spec import Place, TensorRange
from hydra.protocol.range_list import NAME_CHARS_MAX, fold, unfold

NAMES = st.text(alphabet="ab.", max_size=12)
PLACES = st.none() | st.tuples(
    st.sampled_from(["qkv", "down"]), st.none() | st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 3),
    st.sampled_from(["values", "scale"]), st.sampled_from(["", "plus_one"]),
).map(list)  # fmt: skip
ROWS = st.tuples(
    NAMES, st.sampled_from(["a", "b"]), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["F32", "F16"]),
    st.lists(st.integers(0, 9), max_size=3), PLACES,
).map(list)  # fmt: skip


@given(st.lists(ROWS, max_size=8))
def test_what_is_folded_is_unfolded_again(rows):
    assert unfold(fold(rows)) == rows


def test_a_slice_of_a_quantised_mixture_of_experts_fits_into_a_message():
    """48 layers of 128 experts with 3 matrices in 4 tensors each, as one worker may hold all of them."""
    encoding = GroupEncoding("gptq", 4, 1, 128, zero="less_one")
    sides = {"qweight": "values", "scales": "scale", "qzeros": "zero", "g_idx": "order"}
    ranges = tuple(
        TensorRange(
            name=f"model.language_model.layers.{layer}.mlp.experts.{expert}.{module}_proj.{suffix}",
            file=f"model-{layer // 4:05d}-of-00012.safetensors",
            offset=1_000_003 * (layer * 128 + expert),
            length=786_432,
            encoding=encoding if side == "values" else F16,
            shape=(768, 2048),
            place=Place(role="expert_gate_up", layer=layer, first_row=768, expert=expert, side=side),
        )
        for layer in range(12)
        for expert in range(128)
        for module in ("gate", "up", "down")
        for suffix, side in sides.items()
    )
    body = codec.pack(codec.converter.unstructure(ranges, tuple[TensorRange, ...]))
    assert 4 * len(body) < codec.CONTROL_BYTES_MAX, "with three times as many layers again"
    assert codec.converter.structure(codec.unpack(body), tuple[TensorRange, ...]) == ranges


GOOD = fold([["ab", "f", 0, 8, "F32", [2], ["down", 0, 0, None, "values", ""]]] * 2)
FILES, ENCODINGS, KINDS, (FIRST, SECOND) = GOOD


@pytest.mark.parametrize(
    "value",
    [
        None, {}, [], GOOD[:-1], [*GOOD, []], [7, ENCODINGS, KINDS, [FIRST]], [FILES, {}, KINDS, [FIRST]],
        [FILES, ENCODINGS, None, [FIRST]], [FILES, ENCODINGS, [7], [FIRST]], [FILES, ENCODINGS, KINDS, FIRST],
        [FILES, ENCODINGS, KINDS, [FIRST[:-1]]], [[], ENCODINGS, KINDS, [FIRST]],
        *([FILES, ENCODINGS, KINDS, [FIRST, [shared, *SECOND[1:]]]] for shared in (-1, 3, "2", True, None, 2**70)),
        *([FILES, ENCODINGS, KINDS, [[*FIRST[:at], wrong, *FIRST[at + 1 :]]]]
          for at in (2, 5, 7) for wrong in (-1, 1, "0", True, [0])),
        [FILES, ENCODINGS, KINDS, [[0, 7, *FIRST[2:]]]],
    ],
)  # fmt: skip
def test_what_nobody_folded_is_no_list_of_ranges(value):
    assert unfold(GOOD)[1][0] == "ab"
    with pytest.raises((TypeError, ValueError)):
        unfold(value)


def test_names_do_not_grow_without_bound():
    row = [0, "a" * NAME_CHARS_MAX, 0, 0, 8, 0, [2], 0, 0, 0, None]
    more = [[NAME_CHARS_MAX, "a", *row[2:]], [NAME_CHARS_MAX + 1, "a", *row[2:]]]
    assert len(unfold([FILES, ENCODINGS, KINDS, [row, more[0]]])[1][0]) == NAME_CHARS_MAX + 1
    with pytest.raises(TypeError):
        unfold([FILES, ENCODINGS, KINDS, [row, *more]])
