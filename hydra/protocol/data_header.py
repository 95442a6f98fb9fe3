"""The fixed header before the columns of the data lane, the same for steps and results.

Its counts follow from the tables: what is counted in the class's order, then the width of what is wide, then zeros. One
kind more or one count more is another DATA_VERSION. What the counted bytes must look like is `codec_data`'s.
"""

import struct
from functools import lru_cache
from typing import TypeAlias

from hydra.protocol.batch import BATCH_COLUMNS, LOGPROBS_COLUMNS, RESULT_COLUMNS, Step, StepResult
from hydra.protocol.blob import BLOB_DTYPES, Frames
from hydra.protocol.ids import TERM_MAX, Epoch, RouteId, StepId
from hydra.protocol.limits import INT63_MAX

MAGIC = b"HYD"
DATA_VERSION = 2
STEP_KIND, RESULT_KIND = 1, 2
KIND_NAMES = {STEP_KIND: "step", RESULT_KIND: "result"}
COUNTS = max(BATCH_COLUMNS.n_counts, RESULT_COLUMNS.n_counts + LOGPROBS_COLUMNS.n_counts) + 1  # with the width

# magic, version, kind, dtype (0: no tensor, else 1 + index in BLOB_DTYPES), fault (see FAULTS), a spare byte, route,
# term, number, step, the counts, and the bytes of what comes last: openings or log-probabilities
DATA_HEADER = struct.Struct(f"<3sBBBBxIIIQ{COUNTS}II")
FAULTS = {0: False, 1: True}  # 1: a stage had not enough memory for the step
DTYPE_CODES = {dtype: code for code, dtype in enumerate(BLOB_DTYPES, 1)}
AHEAD = 9  # fields before the counts
# dtype code, out of memory, route, epoch, step, counts, bytes of the tail: a plain tuple, since it is made in each step
DataHeader: TypeAlias = tuple[int, bool, RouteId, Epoch, StepId, tuple[int, ...], int]
_epoch = lru_cache(16)(Epoch)  # the same one, step after step


def write_header(kind: int, dtype_code: int, of: Step | StepResult, counts: tuple[int, ...], tail_bytes: int) -> bytes:
    """Raises struct.error, which is a bug of ours."""
    epoch = of.epoch
    if len(counts) < COUNTS:
        counts += (0,) * (COUNTS - len(counts))
    return DATA_HEADER.pack(
        MAGIC, DATA_VERSION, kind, dtype_code, of.out_of_memory,
        of.route, epoch.term, epoch.number, of.step, *counts, tail_bytes,
    )  # fmt: skip


def read_data_header(frames: Frames, wanted: int, n_counts: int) -> DataHeader:
    """Of a message of the wanted kind, before any column is looked at. Raises ValueError or struct.error."""
    if not 1 <= len(frames) <= 2:
        raise ValueError(f"{len(frames)} frames")
    fields = DATA_HEADER.unpack_from(frames[0])
    if fields[:3] != (MAGIC, DATA_VERSION, wanted):
        raise ValueError(f"magic, version and kind {fields[:3]}, where a {KIND_NAMES[wanted]} is expected")
    code, fault, route, term, number, step = fields[3:AHEAD]
    if term > TERM_MAX or step > INT63_MAX or fault not in FAULTS:
        raise ValueError(f"term {term}, step {step}, fault {fault}")
    counts_end = AHEAD + n_counts
    if n_counts < COUNTS and any(fields[counts_end:-1]):
        raise ValueError("a number where nothing is counted")
    return code, FAULTS[fault], route, _epoch(term, number), step, fields[AHEAD:counts_end], fields[-1]
