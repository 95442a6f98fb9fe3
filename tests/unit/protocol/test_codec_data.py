"""The data lane's wire form: steps and results come back whole, and every count is checked."""

import contextlib
import random

import attrs
import numpy as np
import pytest

from hydra.protocol import codec_data
from hydra.protocol.batch import (
    EMPTY,
    ROW_FINE,
    ROW_NOT_FINITE,
    ROWS_MAX,
    Batch,
    Logprobs,
    RowOpening,
    Step,
    StepResult,
    int32,
)
from hydra.protocol.blob import Blob
from hydra.protocol.data_header import DATA_HEADER
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.ids import Epoch
from hydra.protocol.sampling import SamplingParams

OPENING = RowOpening(
    row=7, attempt=1, params=SamplingParams(seed=9, logit_bias=((3, 0.5),)), prompt_tokens=3, history=int32([5, 6, 7])
)
BATCH = Batch(
    row=int32([7, 8]),
    attempt=int32([1, 2]),
    position=int32([0, 40]),
    length=int32([3, 1]),
    sample=int32([1, 1]),
    new_blocks=int32([2, 0]),
    tokens=int32([5, 6, 7, 9]),
    blocks=int32([11, 12]),
    closed=int32([4]),
    opened=(OPENING,),
)
HIDDEN = Blob("bfloat16", (4, 8), bytes(range(64)))
LARGE = Blob("bfloat16", (4, 10_000), bytes(80_000))
STEP = Step(route=3, epoch=Epoch(2, 5), step=2**40, batch=BATCH, hidden=HIDDEN)
FIRST = attrs.evolve(STEP, hidden=None)
WIDE = attrs.evolve(STEP, hidden=LARGE)
RESULT = StepResult(
    route=3, epoch=Epoch(2, 5), step=9, row=int32([7, 8]), attempt=int32([1, 2]), position=int32([3, 41]),
    token=int32([1, 2]),
)  # fmt: skip
TOLD = attrs.evolve(
    RESULT,
    logprobs=Logprobs(
        chosen=np.array([-0.5], np.float32), top_ids=int32([[4, 5, -1]]), top=np.array([[-1, -2, -3]], np.float32)
    ),
)
BROKEN = attrs.evolve(TOLD, token=int32([1, 0]), fault=int32([ROW_FINE, ROW_NOT_FINITE]))
STARVED = attrs.evolve(FIRST, out_of_memory=True)
NOTHING_COMPUTED = StepResult(route=3, epoch=Epoch(2, 5), step=9, out_of_memory=True)
ONLY_CLOSED = Step(route=1, epoch=Epoch(1, 1), step=1, batch=Batch(closed=int32([1, 2])))
NOTHING = Step(route=1, epoch=Epoch(1, 1), step=1, batch=Batch())

STEP_BYTES = (
    "48594402010000000300000002000000050000000000000000010000020000000400000002000000010000000000000000000000"
    "07000000080000000100000002000000000000002800000003000000010000000100000001000000020000000000000005000000"
    "0600000007000000090000000b0000000c00000004000000"
)  # fmt: skip
RESULT_BYTES = (
    "4859440202010000030000000200000005000000090000000000000002000000010000000300000000000000000000001c000000"
    "07000000080000000100000002000000030000002900000001000000000000000000000001000000000000bf0400000005000000"
    "ffffffff000080bf000000c0000040c0"
)  # fmt: skip
NOTHING_BYTES = (
    "48594402010000000100000001000000010000000100000000000000000000000000000000000000000000000000000000000000"
)


@pytest.mark.parametrize("step", [STEP, FIRST, WIDE, STARVED, ONLY_CLOSED, NOTHING])
def test_a_step_comes_back_whole(step):
    frames = codec_data.encode_step(step)
    assert codec_data.decode_step(frames) == step
    assert codec_data.decode_step([memoryview(frame) for frame in frames]) == step


EMPTY_RESULT = StepResult(route=1, epoch=Epoch(1, 1), step=1)


@pytest.mark.parametrize("result", [RESULT, TOLD, BROKEN, NOTHING_COMPUTED, EMPTY_RESULT])
def test_a_result_comes_back_whole(result):
    frames = codec_data.encode_result(result)
    assert codec_data.decode_result(frames) == result


def test_large_hidden_states_are_never_copied_and_small_ones_cost_no_frame():
    frames = codec_data.encode_step(WIDE)
    assert len(frames) == 2 and frames[1] is LARGE.data and codec_data.decode_step(frames).hidden.data is frames[1]
    (frame,) = codec_data.encode_step(STEP)
    data = codec_data.decode_step([frame]).hidden.data
    assert data.obj is frame, "it looks into what was received"
    assert (len(frame) - len(codec_data.encode_step(FIRST)[0])) == len(HIDDEN.data)


def test_bytes_of_version_2_are_what_they_were():
    """A column or a count more is another version: these were written before the columns were a table."""
    (step,) = codec_data.encode_step(attrs.evolve(FIRST, batch=attrs.evolve(BATCH, opened=())))
    assert step.hex() == STEP_BYTES
    assert codec_data.encode_result(BROKEN)[0].hex() == RESULT_BYTES
    assert codec_data.encode_step(NOTHING)[0].hex() == NOTHING_BYTES


def test_columns_that_lie_crooked_in_memory_are_straightened():
    (frame,) = codec_data.encode_step(FIRST)
    crooked = memoryview(b"x" + frame)[1:]
    step = codec_data.decode_step([crooked])
    assert step == FIRST and step.batch.row.flags.aligned


def bad_batches():
    def change(**columns):
        return attrs.evolve(BATCH, **columns)

    yield "a length too many", change(length=int32([4, 1]))
    yield "a length of nothing", change(length=int32([4, 0]))
    yield "a block too few", change(new_blocks=int32([1, 0]))
    yield "a negative position", change(position=int32([0, -1]))
    yield "a negative token", change(tokens=int32([5, 6, -7, 9]))
    yield "more openings than rows", change(opened=(OPENING,) * 3)
    rows = int32(np.ones(ROWS_MAX + 1))
    names = ("row", "attempt", "position", "length", "sample", "tokens")
    yield "too many rows", Batch(**dict.fromkeys(names, rows), new_blocks=int32(np.zeros(len(rows))))


@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in bad_batches()])
def test_columns_that_disagree_are_refused(batch):
    with pytest.raises(TheyBrokeTheRules):
        codec_data.decode_step(codec_data.encode_step(attrs.evolve(FIRST, batch=batch)))


def bad_frames():
    (step,) = codec_data.encode_step(STEP)
    head, hidden = codec_data.encode_step(WIDE)
    (first,) = codec_data.encode_step(FIRST)
    at = DATA_HEADER.size - 4  # the bytes of the openings

    def tail(n_bytes):
        return step[:at] + n_bytes.to_bytes(4, "little") + step[at + 4 :]

    yield "none", []
    yield "an empty one", [b""]
    yield "too many", [head, hidden, b""]
    yield "a short header", [step[: DATA_HEADER.size - 1]]
    yield "another magic", [b"XYZ" + step[3:]]
    yield "another version", [step[:3] + b"\x09" + step[4:]]
    yield "another kind", [step[:4] + b"\x07" + step[5:]]
    yield "an unknown dtype", [step[:5] + b"\x09" + step[6:]]
    yield "no dtype", [step[:5] + b"\x00" + step[6:]]
    yield "another item size", [step[:5] + b"\x01" + step[6:]]
    yield "an unknown fault", [first[:6] + b"\x02" + first[7:]]
    yield "hidden that found no memory", [step[:6] + b"\x01" + step[7:]]
    yield "short columns", [step[: DATA_HEADER.size + 8]]
    yield "a torn number", [first[:-1]]
    yield "a byte too many", [first + b"x"]
    yield "hidden that never came", [head]
    yield "hidden too short", [head, hidden[:-2]]
    yield "hidden twice", [step, hidden]
    yield "hidden that nobody announced", [first, hidden]
    yield "openings beyond the frame", [tail(1 << 31)]
    yield "openings that begin elsewhere", [tail(3)]
    yield "no openings", [tail(0)]
    n_tail = DATA_HEADER.unpack_from(head)[-1]
    yield "openings of nonsense", [head[:-n_tail] + b"\xc1" * n_tail, hidden]
    yield "a result", codec_data.encode_result(RESULT)


@pytest.mark.parametrize("frames", [pytest.param(frames, id=name) for name, frames in bad_frames()])
def test_malformed_steps_are_refused(frames):
    with pytest.raises(TheyBrokeTheRules):
        codec_data.decode_step(frames)


@pytest.mark.parametrize(
    "frames",
    [
        codec_data.encode_step(FIRST),
        [codec_data.encode_result(RESULT)[0] + b"1234"],
        [codec_data.encode_result(TOLD)[0] + b"1234"],
        [codec_data.encode_result(TOLD)[0][:-4]],
        [*codec_data.encode_result(RESULT), b""],
        codec_data.encode_result(attrs.evolve(RESULT, out_of_memory=True)),
        codec_data.encode_result(attrs.evolve(RESULT, fault=int32([0, ROW_NOT_FINITE + 1]))),
        codec_data.encode_result(attrs.evolve(RESULT, fault=int32([0]))),
    ],
)
def test_malformed_results_are_refused(frames):
    with pytest.raises(TheyBrokeTheRules):
        codec_data.decode_result(frames)


def test_rows_without_a_word_on_faults_are_fine():
    assert RESULT.fault.tolist() == [ROW_FINE, ROW_FINE]


def test_our_own_mistakes_are_bugs_and_not_sent():
    with pytest.raises(TypeError):
        codec_data.encode_step(attrs.evolve(FIRST, batch=attrs.evolve(BATCH, row=np.array([7, 8], np.int64))))
    with pytest.raises(ValueError, match="not computed"):
        codec_data.encode_step(attrs.evolve(STEP, out_of_memory=True))
    with pytest.raises(ValueError, match="hidden"):
        codec_data.encode_step(attrs.evolve(STEP, batch=attrs.evolve(BATCH, tokens=EMPTY)))


def test_mutated_frames_never_raise_anything_else():
    rng = random.Random(11)
    cases = [(codec_data.encode_step(step), codec_data.decode_step) for step in (STEP, FIRST, WIDE)]
    cases += [(codec_data.encode_result(TOLD), codec_data.decode_result)]
    for frames, decode in cases:
        for _ in range(1500):
            mutant = [bytearray(frame) for frame in frames]
            frame = rng.choice([part for part in mutant if part])
            for _ in range(rng.randint(1, 3)):
                frame[rng.randrange(len(frame))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            if rng.random() < 0.1:
                del frame[rng.randrange(len(frame)) :]
            with contextlib.suppress(TheyBrokeTheRules):
                decode(mutant)


def test_random_bytes_never_raise_anything_else():
    rng = random.Random(12)
    for _ in range(2000):
        frames = [rng.randbytes(rng.choice((0, 3, DATA_HEADER.size, 64))) for _ in range(rng.randint(0, 5))]
        with pytest.raises(TheyBrokeTheRules):
            codec_data.decode_step(frames)
        with pytest.raises(TheyBrokeTheRules):
            codec_data.decode_result(frames)


@pytest.mark.parametrize("change", [{"epoch": Epoch(2**31, 1)}, {"epoch": Epoch(2**32 - 1, 1)}, {"step": 2**63}])
def test_terms_and_steps_that_cannot_be_are_refused(change):
    with pytest.raises(TheyBrokeTheRules):
        codec_data.decode_step(codec_data.encode_step(attrs.evolve(FIRST, **change)))
    with pytest.raises(TheyBrokeTheRules):
        codec_data.decode_result(codec_data.encode_result(attrs.evolve(RESULT, **change)))
