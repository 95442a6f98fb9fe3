"""The data lane's wire form: a fixed header, all int32 columns end to end, openings, and the raw tensor.

    step:   header | columns | hidden (absent on the way to the first stage) | openings (msgpack, may be empty)
    result: header | columns | log-probabilities (may be empty)

One frame holds it all, because every further frame costs as much as a small message. Only hidden states above 64 KiB
travel in a second frame of their own, which is never copied. Every count, length and dtype is checked before it is
used; malformed frames become TheyBrokeTheRules. Which columns there are, and what they may say, is read from the tables
of `batch`. Whether a step is stale, in sequence or makes sense to its rows is not known here: see StageLine.
"""

from typing import Any

from hydra.protocol.batch import (
    BATCH_COLUMNS,
    LOGPROBS_COLUMNS,
    RESULT_COLUMNS,
    Batch,
    Logprobs,
    RowOpening,
    Step,
    StepResult,
)
from hydra.protocol.blob import BLOB_DTYPES, Blob, Buffer, Frames
from hydra.protocol.codec import converter, pack, unpack
from hydra.protocol.columns import ITEM_BYTES
from hydra.protocol.data_header import (
    DATA_HEADER,
    DTYPE_CODES,
    RESULT_KIND,
    STEP_KIND,
    read_data_header,
    write_data_header,
)
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.limits import ALTERNATIVES_MAX

INLINE_BYTES_MAX = 64 << 10
OPENINGS_BYTES_MAX = 64 << 20
WIDTH_MAX = 1 << 20
OPENINGS: Any = tuple[RowOpening, ...]
STEP_COUNTS = BATCH_COLUMNS.n_counts + 1  # with the width of the hidden states
RESULT_COUNTS = RESULT_COLUMNS.n_counts + LOGPROBS_COLUMNS.n_counts + 1  # with the number of alternatives
_write_openings = converter.get_unstructure_hook(OPENINGS)
_read_openings = converter.get_structure_hook(OPENINGS)


# ---------------------------------------------------------------- steps


def encode_step(step: Step) -> list[Buffer]:
    """Frames of a step; the hidden frame is the blob's own buffer. ValueError and TypeError are bugs of ours."""
    batch, hidden = step.batch, step.hidden
    dtype_code = width = 0
    if hidden is not None:
        if step.out_of_memory:
            raise ValueError("hidden states of a step that was not computed")
        n_rows, width = hidden.shape
        if n_rows != len(batch.tokens):
            raise ValueError(f"hidden of {hidden.shape} for {len(batch.tokens)} tokens")
        dtype_code = DTYPE_CODES[hidden.dtype]
    openings = pack(_write_openings(batch.opened)) if batch.opened else b""
    counts, columns = batch.packed or (BATCH_COLUMNS.counts(batch), BATCH_COLUMNS.join(batch))
    header = write_data_header(STEP_KIND, dtype_code, step, (*counts, width), len(openings))
    if hidden is None:
        return [b"".join((header, columns, openings))]
    if len(hidden.data) <= INLINE_BYTES_MAX:
        return [b"".join((header, columns, hidden.data, openings))]
    return [b"".join((header, columns, openings)), hidden.data]


def decode_step(frames: Frames) -> Step:
    """The columns and the hidden blob look into the received buffers. Raises TheyBrokeTheRules and nothing else."""
    try:
        code, out_of_memory, route, epoch, number, counts, n_tail = read_data_header(frames, STEP_KIND, STEP_COUNTS)
        head, width, counts = frames[0], counts[-1], counts[:-1]
        layout = BATCH_COLUMNS.layout(counts)
        columns = BATCH_COLUMNS.cut(head, DATA_HEADER.size, layout)
        hidden_at, tail_at = DATA_HEADER.size + ITEM_BYTES * layout.n_values, len(head) - n_tail
        if tail_at < hidden_at:
            raise ValueError("openings announced beyond the frame")
        opened = _openings(head[tail_at:]) if n_tail else ()
        batch = Batch(*columns, opened=opened, packed=(counts, bytes(head[DATA_HEADER.size : hidden_at])))
        if len(opened) > batch.n_rows:
            raise ValueError(f"{len(opened)} openings for {batch.n_rows} rows")
        hidden = None
        if code:
            if not (code <= len(BLOB_DTYPES) and width <= WIDTH_MAX) or out_of_memory:
                raise ValueError(f"hidden of dtype {code}, width {width}, out of memory: {out_of_memory}")
            data = frames[1] if len(frames) == 2 else memoryview(head)[hidden_at:tail_at]
            hidden = Blob(BLOB_DTYPES[code - 1], (batch.n_tokens, width), data)
        if (not code and (width or len(frames) == 2)) or (hidden_at != tail_at and (not code or len(frames) == 2)):
            raise ValueError("bytes that nobody announced")
    except Exception as error:
        raise TheyBrokeTheRules(f"no step: {error!r:.200}") from error
    return Step(route=route, epoch=epoch, step=number, batch=batch, hidden=hidden, out_of_memory=out_of_memory)


def _openings(frame: Buffer) -> tuple[RowOpening, ...]:
    if len(frame) > OPENINGS_BYTES_MAX:
        raise ValueError(f"openings of {len(frame)} bytes")
    opened: tuple[RowOpening, ...] = _read_openings(unpack(frame), OPENINGS)
    return opened


# ---------------------------------------------------------------- results


def encode_result(result: StepResult) -> list[Buffer]:
    """Frames of a result. ValueError and TypeError are bugs of ours."""
    logprobs = result.logprobs
    asked: tuple[int, ...] = (0,)
    width, tail = 0, b""
    if logprobs is not None:
        asked, width, tail = LOGPROBS_COLUMNS.counts(logprobs), logprobs.top.shape[1], LOGPROBS_COLUMNS.join(logprobs)
    counts = (*RESULT_COLUMNS.counts(result), *asked, width)
    header = write_data_header(RESULT_KIND, 0 if logprobs is None else 1, result, counts, len(tail))
    return [b"".join((header, RESULT_COLUMNS.join(result), tail))]


def decode_result(frames: Frames) -> StepResult:
    """The other half of encode_result. Raises TheyBrokeTheRules and nothing else."""
    try:
        asks, out_of_memory, route, epoch, number, counts, n_tail = read_data_header(frames, RESULT_KIND, RESULT_COUNTS)
        head, counts, asked = frames[0], counts[: RESULT_COLUMNS.n_counts], counts[RESULT_COLUMNS.n_counts :]
        if len(frames) != 1 or asks > 1 or (out_of_memory and any(counts)):
            raise ValueError("a result has one frame, log-probabilities or none, and no rows without memory")
        layout = RESULT_COLUMNS.layout(counts)
        tail_at = DATA_HEADER.size + ITEM_BYTES * layout.n_values
        if len(head) != tail_at + n_tail or (not asks and (any(asked) or n_tail)):
            raise ValueError("log-probabilities nobody announced")
        columns = RESULT_COLUMNS.cut(head, DATA_HEADER.size, layout)
        logprobs = _logprobs(bytes(head[tail_at:]), *counts, *asked) if asks else None
    except Exception as error:
        raise TheyBrokeTheRules(f"no result: {error!r:.200}") from error
    return StepResult(*columns, route=route, epoch=epoch, step=number, logprobs=logprobs, out_of_memory=out_of_memory)


def _logprobs(tail: bytes, n_rows: int, n_asked: int, width: int) -> Logprobs:
    if n_asked > n_rows or width > ALTERNATIVES_MAX:
        raise ValueError(f"{n_rows} rows, {n_asked} with {width} alternatives")
    layout = LOGPROBS_COLUMNS.layout((n_asked,), width)
    if len(tail) != ITEM_BYTES * layout.n_values:
        raise ValueError(f"log-probabilities of {layout.n_values} numbers announced, {len(tail)} bytes came")
    return Logprobs(*LOGPROBS_COLUMNS.cut(tail, 0, layout))
