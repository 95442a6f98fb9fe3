"""The data lane's wire form: a fixed header, all int32 columns end to end, openings, and the raw tensor.

    step:   header | columns | hidden (absent on the way to the first stage) | openings (msgpack, may be empty)
    result: header | columns | log-probabilities (may be empty)

One frame holds it all, because every further frame costs as much as a small message. Only hidden states above 64 KiB
travel in a second frame of their own, which is never copied. Every count, length and dtype is checked before it is
used; malformed frames become TheyBrokeTheRules. Whether a step is stale, in sequence or makes sense to its rows is not
known here: see StageLine.
"""

import struct
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np

from hydra.protocol.batch import (
    EMPTY,
    ROW_NOT_FINITE,
    ROWS_MAX,
    TOKENS_MAX,
    Batch,
    Int32Column,
    Logprobs,
    RowOpening,
    Step,
    StepResult,
)
from hydra.protocol.blob import BLOB_DTYPES, Blob, Buffer
from hydra.protocol.codec import FLOAT32, INT32, converter, lowest, pack, unpack
from hydra.protocol.ids import TERM_MAX, Epoch, RouteId, StepId
from hydra.protocol.limits import ALTERNATIVES_MAX, INT63_MAX
from hydra.protocol.wires.wire import Frames, TheyBrokeTheRules

Kind: TypeAlias = Literal["step", "result"]

MAGIC = b"HYD"
DATA_VERSION = 2
KIND_STEP, KIND_RESULT = 1, 2
KINDS: dict[int, Kind] = {KIND_STEP: "step", KIND_RESULT: "result"}

# magic, version, kind, dtype (0: no tensor, else 1 + index in BLOB_DTYPES), fault (see FAULTS), a spare byte,
# route, term, number, step, then five counts:
#   step:   rows, tokens, blocks, closed, width of hidden
#   result: rows, rows with log-probabilities, alternatives, 0, 0
# and the bytes of the openings or log-probabilities.
HEADER = struct.Struct("<3sBBBBxIIIQIIIIII")
INLINE_BYTES_MAX = 64 << 10
FAULTS = {0: False, 1: True}  # 1: a stage had not enough memory for the step
DTYPE_CODES = {dtype: code for code, dtype in enumerate(BLOB_DTYPES, 1)}

OPENINGS_BYTES_MAX = 64 << 20
WIDTH_MAX = 1 << 20
ROW_COLUMNS = 6  # of a step: row, attempt, position, length, sample, new_blocks
RESULT_COLUMNS = 5  # row, attempt, position, token, fault
OPENINGS: Any = tuple[RowOpening, ...]
_write_openings = converter.get_unstructure_hook(OPENINGS)
_epoch = lru_cache(16)(Epoch)  # the same one, step after step
_read_openings = converter.get_structure_hook(OPENINGS)


@attrs.frozen
class StepHeader:
    """What must be known to drop a stale message unread."""

    kind: Kind
    route: RouteId
    epoch: Epoch
    step: StepId


def _join(columns: tuple[Int32Column, ...]) -> bytes:
    """All columns end to end. A column that is not int32 is our own mistake: TypeError."""
    joined: bytes = np.concatenate(columns, dtype=INT32, casting="equiv").tobytes()
    return joined


def _parse_header(frames: Frames, wanted: int | None = None) -> tuple[Any, ...]:
    """Everything in it: bytes first, then numbers."""
    if not 1 <= len(frames) <= 2:
        raise ValueError(f"{len(frames)} frames")
    found = HEADER.unpack_from(frames[0])
    if found[0] != MAGIC or found[1] != DATA_VERSION or found[2] not in KINDS or found[4] not in FAULTS:
        raise ValueError(f"magic {found[0]!r}, version {found[1]}, kind {found[2]}, fault {found[4]}")
    if wanted is not None and found[2] != wanted:
        raise ValueError(f"expected a {KINDS[wanted]}, got a {KINDS[found[2]]}")
    if found[6] > TERM_MAX or found[8] > INT63_MAX:
        raise ValueError(f"term {found[6]}, step {found[8]}")
    return found


def peek_header(frames: Frames) -> StepHeader:
    """The header alone, before any column is looked at. Raises TheyBrokeTheRules."""
    try:
        _, _, kind, _, _, route, term, number, step, *_ = _parse_header(frames)
    except Exception as why:
        raise TheyBrokeTheRules(f"no header of the data lane: {why!r:.200}") from why
    return StepHeader(KINDS[kind], RouteId(route), Epoch(term, number), StepId(step))


def _columns(head: Buffer, n_values: int) -> Int32Column:
    """The columns as one aligned array; no column ever holds a negative number."""
    values: Int32Column = np.frombuffer(head, INT32, n_values, HEADER.size) if n_values else EMPTY
    if lowest(values) < 0:
        raise ValueError("a negative number in a column")
    return values if values.flags.aligned else values.copy()


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
    epoch = step.epoch
    openings = pack(_write_openings(batch.opened)) if batch.opened else b""
    header = HEADER.pack(
        *(MAGIC, DATA_VERSION, KIND_STEP, dtype_code, step.out_of_memory),
        *(step.route, epoch.term, epoch.number, step.step),
        *(len(batch.row), len(batch.tokens), len(batch.blocks), len(batch.closed), width, len(openings)),
    )
    columns = batch.packed
    if columns is None:
        columns = _join(
            (
                *(batch.row, batch.attempt, batch.position, batch.length, batch.sample, batch.new_blocks),
                *(batch.tokens, batch.blocks, batch.closed),
            )
        )
    if hidden is None:
        return [b"".join((header, columns, openings))]
    if len(hidden.data) <= INLINE_BYTES_MAX:
        return [b"".join((header, columns, hidden.data, openings))]
    return [b"".join((header, columns, openings)), hidden.data]


def _batch(
    values: Int32Column, packed: bytes, n_rows: int, n_tokens: int, n_blocks: int, opened: tuple[RowOpening, ...]
) -> Batch:
    """Cuts the joined columns; their total length is already known to be right."""
    tokens_at = ROW_COLUMNS * n_rows
    length, new_blocks = values[3 * n_rows : 4 * n_rows], values[5 * n_rows : tokens_at]
    lengths = length.tolist()
    if sum(lengths) != n_tokens or 0 in lengths:
        raise ValueError("lengths of rows and tokens disagree")
    if sum(new_blocks.tolist()) != n_blocks:
        raise ValueError("new blocks of rows and blocks disagree")
    blocks_at = tokens_at + n_tokens
    closed_at = blocks_at + n_blocks
    return Batch(
        row=values[:n_rows],
        attempt=values[n_rows : 2 * n_rows],
        position=values[2 * n_rows : 3 * n_rows],
        length=length,
        sample=values[4 * n_rows : 5 * n_rows],
        new_blocks=new_blocks,
        tokens=values[tokens_at:blocks_at],
        blocks=values[blocks_at:closed_at],
        closed=values[closed_at:],
        opened=opened,
        packed=packed,
    )


def decode_step(frames: Frames) -> Step:
    """The columns and the hidden blob look into the received buffers. Raises TheyBrokeTheRules and nothing else."""
    try:
        found = _parse_header(frames, KIND_STEP)
        code, fault, route, term, number, step, n_rows, n_tokens, n_blocks, n_closed, width, n_tail = found[3:]
        if n_rows > ROWS_MAX or n_tokens > TOKENS_MAX or n_blocks > TOKENS_MAX or n_closed > TOKENS_MAX:
            raise ValueError(f"{n_rows} rows, {n_tokens} tokens, {n_blocks} blocks, {n_closed} closed")
        head = frames[0]
        n_values = ROW_COLUMNS * n_rows + n_tokens + n_blocks + n_closed
        values = _columns(head, n_values)
        hidden_at, tail_at = HEADER.size + 4 * n_values, len(head) - n_tail
        if tail_at < hidden_at:
            raise ValueError("openings announced beyond the frame")
        opened = _openings(head[tail_at:], n_rows) if n_tail else ()
        hidden = None
        if code:
            if not (code <= len(BLOB_DTYPES) and width <= WIDTH_MAX) or fault:
                raise ValueError(f"hidden of dtype {code}, width {width}, fault {fault}")
            data = frames[1] if len(frames) == 2 else memoryview(head)[hidden_at:tail_at]
            hidden = Blob(BLOB_DTYPES[code - 1], (n_tokens, width), data)
        if (not code and (width or len(frames) == 2)) or (hidden_at != tail_at and (not code or len(frames) == 2)):
            raise ValueError("bytes that nobody announced")
        packed = bytes(head[HEADER.size : hidden_at])
        batch = _batch(values, packed, n_rows, n_tokens, n_blocks, opened)
    except Exception as why:
        raise TheyBrokeTheRules(f"no step: {why!r:.200}") from why
    return Step(
        route=RouteId(route),
        epoch=_epoch(term, number),
        step=StepId(step),
        batch=batch,
        hidden=hidden,
        out_of_memory=FAULTS[fault],
    )


def _openings(frame: Buffer, n_rows: int) -> tuple[RowOpening, ...]:
    if len(frame) > OPENINGS_BYTES_MAX:
        raise ValueError(f"openings of {len(frame)} bytes")
    opened: tuple[RowOpening, ...] = _read_openings(unpack(frame), OPENINGS)
    if len(opened) > n_rows:
        raise ValueError(f"{len(opened)} openings for {n_rows} rows")
    return opened


# ---------------------------------------------------------------- results


def encode_result(result: StepResult) -> list[Buffer]:
    """Frames of a result. ValueError and TypeError are bugs of ours."""
    logprobs, epoch = result.logprobs, result.epoch
    n_told = n_top = 0
    tail = b""
    if logprobs is not None:
        n_told, n_top = logprobs.top_ids.shape
        parts = (logprobs.chosen.astype(FLOAT32), logprobs.top_ids.astype(INT32), logprobs.top.astype(FLOAT32))
        tail = b"".join(part.tobytes() for part in parts)
    header = HEADER.pack(
        *(MAGIC, DATA_VERSION, KIND_RESULT, 0 if logprobs is None else 1, result.out_of_memory),
        *(result.route, epoch.term, epoch.number, result.step, len(result.row), n_told, n_top, 0, 0, len(tail)),
    )
    columns = (result.row, result.attempt, result.position, result.token, result.fault)
    return [b"".join((header, _join(columns), tail))]


def _logprobs(frame: Buffer, n_told: int, n_top: int) -> Logprobs:
    n_bytes = 4 * n_told * (1 + 2 * n_top)
    if len(frame) != n_bytes:
        raise ValueError(f"log-probabilities of {n_bytes} bytes announced, {len(frame)} came")
    data = bytes(frame)
    ids_at = 4 * n_told
    top_at = ids_at + 4 * n_told * n_top
    return Logprobs(
        chosen=np.frombuffer(data, FLOAT32, n_told),
        top_ids=np.frombuffer(data[ids_at:top_at], INT32).reshape(n_told, n_top),
        top=np.frombuffer(data[top_at:], FLOAT32).reshape(n_told, n_top),
    )


def decode_result(frames: Frames) -> StepResult:
    """The other half of encode_result. Raises TheyBrokeTheRules and nothing else."""
    try:
        found = _parse_header(frames, KIND_RESULT)
        told, memory, route, term, number, step, n_rows, n_told, n_top, *rest, n_tail = found[3:]
        if len(frames) != 1 or told > 1 or any(rest) or (memory and n_rows):
            raise ValueError("a result has one frame and zeros where nothing is said, and no rows without memory")
        if n_rows > ROWS_MAX or n_told > n_rows or n_top > ALTERNATIVES_MAX:
            raise ValueError(f"{n_rows} rows, {n_told} with {n_top} alternatives")
        head, tail_at = frames[0], HEADER.size + 4 * RESULT_COLUMNS * n_rows
        values = _columns(head, RESULT_COLUMNS * n_rows)
        if len(head) != tail_at + n_tail or (not told and (n_told or n_top or n_tail)):
            raise ValueError("log-probabilities nobody announced")
        logprobs = _logprobs(head[tail_at:], n_told, n_top) if told else None
        row, attempt, position, token, fault = (values[i * n_rows : (i + 1) * n_rows] for i in range(RESULT_COLUMNS))
        if max(fault.tolist(), default=0) > ROW_NOT_FINITE:
            raise ValueError("a fault that nobody knows")
    except Exception as why:
        raise TheyBrokeTheRules(f"no result: {why!r:.200}") from why
    return StepResult(
        route=RouteId(route),
        epoch=Epoch(term, number),
        step=StepId(step),
        row=row,
        attempt=attempt,
        position=position,
        token=token,
        fault=fault,
        logprobs=logprobs,
        out_of_memory=FAULTS[memory],
    )
