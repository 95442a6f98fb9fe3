"""The data lane's wire form: a fixed header, all int32 columns end to end, openings, and the raw tensor.

    step:   header | columns | openings (msgpack, may be empty) | hidden, absent on the way to the first stage
    result: header | columns | log-probabilities (may be empty)

Every count, length and dtype is checked before it is used and nothing large is copied; malformed frames become
TheyBrokeTheRules. Whether a step is stale, in sequence or makes sense to its rows is not known here: see StageLine.
"""

import struct
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np

from hydra.protocol.batch import ROWS_MAX, TOKENS_MAX, Batch, Int32Column, Logprobs, RowOpening, Step, StepResult
from hydra.protocol.blob import BLOB_DTYPES, Blob, Buffer
from hydra.protocol.codec import FLOAT32, INT32, converter, pack, unpack
from hydra.protocol.ids import Epoch, RouteId, StepId
from hydra.protocol.wire import Frames, TheyBrokeTheRules

Kind: TypeAlias = Literal["step", "result"]

MAGIC = b"HYD"
DATA_VERSION = 1
KIND_STEP, KIND_RESULT = 1, 2
KINDS: dict[int, Kind] = {KIND_STEP: "step", KIND_RESULT: "result"}

# magic, version, kind, dtype (0: no tensor, else 1 + index in BLOB_DTYPES), two spare bytes,
# route, term, number, step, then five counts:
#   step:   rows, tokens, blocks, closed, width of hidden
#   result: rows, rows with log-probabilities, alternatives, 0, 0
HEADER = struct.Struct("<3sBBBxxIIIQIIIII")
DTYPE_CODES = {dtype: code for code, dtype in enumerate(BLOB_DTYPES, 1)}

OPENINGS_BYTES_MAX = 64 << 20
ALTERNATIVES_MAX = 20
WIDTH_MAX = 1 << 20
ROW_COLUMNS = 6  # of a step: row, attempt, position, length, sample, new_blocks
RESULT_COLUMNS = 4
OPENINGS: Any = tuple[RowOpening, ...]
_write_openings = converter.get_unstructure_hook(OPENINGS)
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


def _parse_header(frames: Frames, wanted: int | None = None) -> tuple[int, ...]:
    """Everything after the magic and the version, as numbers."""
    if not 3 <= len(frames) <= 4:
        raise ValueError(f"{len(frames)} frames")
    magic, version, *rest = HEADER.unpack(frames[0])
    if magic != MAGIC or version != DATA_VERSION or rest[0] not in KINDS:
        raise ValueError(f"magic {magic!r}, version {version}, kind {rest[0]}")
    if wanted is not None and rest[0] != wanted:
        raise ValueError(f"expected a {KINDS[wanted]}, got a {KINDS[rest[0]]}")
    return tuple(rest)


def peek_header(frames: Frames) -> StepHeader:
    """The header alone, before any column is looked at. Raises TheyBrokeTheRules."""
    try:
        kind, _, route, term, number, step, *_ = _parse_header(frames)
    except Exception as why:
        raise TheyBrokeTheRules(f"no header of the data lane: {why!r:.200}") from why
    return StepHeader(KINDS[kind], RouteId(route), Epoch(term, number), StepId(step))


def kind_of(frames: Frames) -> Kind:
    """Raises TheyBrokeTheRules."""
    return peek_header(frames).kind


def _columns(frame: Buffer, n_values: int) -> Int32Column:
    """The columns' frame as one aligned array; no column ever holds a negative number."""
    values: Int32Column = np.frombuffer(frame, INT32)
    if len(values) != n_values:
        raise ValueError(f"{n_values} numbers announced, {len(values)} came")
    if n_values and np.minimum.reduce(values) < 0:
        raise ValueError("a negative number in a column")
    return values if values.flags.aligned else values.copy()


# ---------------------------------------------------------------- steps


def encode_step(step: Step) -> list[Buffer]:
    """Frames of a step; the hidden frame is the blob's own buffer. ValueError and TypeError are bugs of ours."""
    batch, hidden = step.batch, step.hidden
    dtype_code = width = 0
    if hidden is not None:
        n_rows, width = hidden.shape
        if n_rows != len(batch.tokens):
            raise ValueError(f"hidden of {hidden.shape} for {len(batch.tokens)} tokens")
        dtype_code = DTYPE_CODES[hidden.dtype]
    epoch = step.epoch
    counts = (len(batch.row), len(batch.tokens), len(batch.blocks), len(batch.closed), width)
    header = HEADER.pack(
        MAGIC, DATA_VERSION, KIND_STEP, dtype_code, step.route, epoch.term, epoch.number, step.step, *counts
    )
    columns = _join(
        (
            *(batch.row, batch.attempt, batch.position, batch.length, batch.sample, batch.new_blocks),
            *(batch.tokens, batch.blocks, batch.closed),
        )
    )
    frames: list[Buffer] = [header, columns, pack(_write_openings(batch.opened)) if batch.opened else b""]
    if hidden is not None:
        frames.append(hidden.data)
    return frames


def _batch(values: Int32Column, n_rows: int, n_tokens: int, n_blocks: int, opened: tuple[RowOpening, ...]) -> Batch:
    """Cuts the joined columns; their total length is already known to be right."""
    cuts = [values[i * n_rows : (i + 1) * n_rows] for i in range(ROW_COLUMNS)]
    row, attempt, position, length, sample, new_blocks = cuts
    lengths = length.tolist()
    if sum(lengths) != n_tokens or 0 in lengths:
        raise ValueError("lengths of rows and tokens disagree")
    if sum(new_blocks.tolist()) != n_blocks:
        raise ValueError("new blocks of rows and blocks disagree")
    tokens_at = ROW_COLUMNS * n_rows
    blocks_at = tokens_at + n_tokens
    closed_at = blocks_at + n_blocks
    return Batch(
        row=row,
        attempt=attempt,
        position=position,
        length=length,
        sample=sample,
        new_blocks=new_blocks,
        tokens=values[tokens_at:blocks_at],
        blocks=values[blocks_at:closed_at],
        closed=values[closed_at:],
        opened=opened,
    )


def decode_step(frames: Frames) -> Step:
    """The columns and the hidden blob look into the received buffers. Raises TheyBrokeTheRules and nothing else."""
    try:
        _, dtype_code, route, term, number, step, n_rows, n_tokens, n_blocks, n_closed, width = _parse_header(
            frames, KIND_STEP
        )
        if n_rows > ROWS_MAX or n_tokens > TOKENS_MAX or n_blocks > TOKENS_MAX or n_closed > TOKENS_MAX:
            raise ValueError(f"{n_rows} rows, {n_tokens} tokens, {n_blocks} blocks, {n_closed} closed")
        values = _columns(frames[1], ROW_COLUMNS * n_rows + n_tokens + n_blocks + n_closed)
        opened = _openings(frames[2], n_rows) if len(frames[2]) else ()
        hidden = None
        if len(frames) == 4:
            if not (0 < dtype_code <= len(BLOB_DTYPES) and width <= WIDTH_MAX):
                raise ValueError(f"hidden of dtype {dtype_code}, width {width}")
            hidden = Blob(BLOB_DTYPES[dtype_code - 1], (n_tokens, width), frames[3])
        elif dtype_code or width:
            raise ValueError("hidden is announced and absent")
        batch = _batch(values, n_rows, n_tokens, n_blocks, opened)
    except Exception as why:
        raise TheyBrokeTheRules(f"no step: {why!r:.200}") from why
    return Step(route=RouteId(route), epoch=Epoch(term, number), step=StepId(step), batch=batch, hidden=hidden)


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
        *(MAGIC, DATA_VERSION, KIND_RESULT, 0 if logprobs is None else 1),
        *(result.route, epoch.term, epoch.number, result.step, len(result.row), n_told, n_top, 0, 0),
    )
    return [header, _join((result.row, result.attempt, result.position, result.token)), tail]


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
        _, told, route, term, number, step, n_rows, n_told, n_top, *rest = _parse_header(frames, KIND_RESULT)
        if len(frames) != 3 or told > 1 or any(rest):
            raise ValueError("a result has three frames and zeros where nothing is said")
        if n_rows > ROWS_MAX or n_told > n_rows or n_top > ALTERNATIVES_MAX:
            raise ValueError(f"{n_rows} rows, {n_told} with {n_top} alternatives")
        values = _columns(frames[1], RESULT_COLUMNS * n_rows)
        if not told and (n_told or n_top or len(frames[2])):
            raise ValueError("log-probabilities nobody announced")
        logprobs = _logprobs(frames[2], n_told, n_top) if told else None
        row, attempt, position, token = (values[i * n_rows : (i + 1) * n_rows] for i in range(RESULT_COLUMNS))
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
        logprobs=logprobs,
    )
