"""The compiled products, as ctypes calls them: opened once per process, by the front door that promised them.

Only a library that this program compiled of its own sources is ever opened. Without a promise, or where nothing could
be compiled, there is none, and torch's operators do the work. ctypes lets other threads run during a call.
"""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import attrs

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


class MatrixStruct(ctypes.Structure):
    """`matrix_t` of matrix.h, field by field."""

    _fields_ = (
        ("rows", _LONG),
        ("columns", _LONG),
        ("row_bytes", _LONG),
        ("groups", _LONG),
        ("group_columns", _LONG),
        ("group_rows", _LONG),
        ("codes", _POINTER),
        ("scales", _POINTER),
        ("zeros", _POINTER),
        ("minima", _POINTER),
        ("form", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("offset", ctypes.c_int32),
        ("table_unit", ctypes.c_float),
        ("table_middle", ctypes.c_int32),
        ("table", ctypes.c_uint8 * 16),
        ("float_table", ctypes.c_uint8 * 64),
    )


class NormStruct(ctypes.Structure):
    """`norm_t` of rows.h."""

    _fields_ = (
        ("x", _POINTER),
        ("out", _POINTER),
        ("weight", _POINTER),
        ("rows", _LONG),
        ("stride", _LONG),
        ("out_stride", _LONG),
        ("count", _LONG),
        ("columns", _LONG),
        ("eps", _FLOAT),
    )


class RotationStruct(ctypes.Structure):
    """`rotation_t` of rows.h."""

    _fields_ = (
        ("x", _POINTER),
        ("cos", _POINTER),
        ("signed_sin", _POINTER),
        ("rows", _LONG),
        ("row_stride", _LONG),
        ("heads", _LONG),
        ("head_columns", _LONG),
        ("columns", _LONG),
    )


class GateStruct(ctypes.Structure):
    """`gate_t` of rows.h."""

    _fields_ = (
        ("x", _POINTER),
        ("out", _POINTER),
        ("rows", _LONG),
        ("columns", _LONG),
        ("kind", ctypes.c_int32),
    )


class AttentionStruct(ctypes.Structure):
    """`attention_t` of rows.h."""

    _fields_ = (
        ("query", _POINTER),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("table", _POINTER),
        ("first", _POINTER),
        ("reach", _POINTER),
        ("sinks", _POINTER),
        ("out", _POINTER),
        ("rows", _LONG),
        ("heads", _LONG),
        ("kv_heads", _LONG),
        ("width", _LONG),
        ("query_stride", _LONG),
        ("table_stride", _LONG),
        ("block", _LONG),
        ("scale", _FLOAT),
        ("softcap", _FLOAT),
    )


class BufferStruct(ctypes.Structure):
    """`buffer_t` of program.c."""

    _fields_ = (
        ("at", _POINTER),
        ("width", _LONG),
    )


class OperationStruct(ctypes.Structure):
    """`operation_t` of program.c."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("in", ctypes.c_int32),
        ("out", ctypes.c_int32),
        ("index", ctypes.c_int32),
        ("in_at", _LONG),
        ("out_at", _LONG),
        ("columns", _LONG),
        ("count", _LONG),
        ("kv_count", _LONG),
        ("data", _POINTER),
        ("more", _POINTER),
        ("sinks", _POINTER),
        ("number", _FLOAT),
        ("softcap", _FLOAT),
    )


class TableStruct(ctypes.Structure):
    """`table_t` of program.c."""

    _fields_ = (
        ("cos", _POINTER),
        ("signed_sin", _POINTER),
        ("query_scale", _POINTER),
        ("columns", _LONG),
    )


class StepStruct(ctypes.Structure):
    """`step_t` of program.c."""

    _fields_ = (
        ("operations", _POINTER),
        ("buffers", _POINTER),
        ("tables", _POINTER),
        ("firsts", _POINTER),
        ("slots", _POINTER),
        ("reach", _POINTER),
        ("blocks", _POINTER),
        ("blocks_stride", _LONG),
        ("block", _LONG),
        ("n_operations", _LONG),
        ("rows", _LONG),
        ("threads", ctypes.c_int32),
    )


_ROW_STRUCTS: dict[str, type[ctypes.Structure]] = {
    "rms_norm": NormStruct,
    "rotate": RotationStruct,
    "gate": GateStruct,
    "attend": AttentionStruct,
}


@attrs.frozen(eq=False)
class NativeLibrary:
    """What the sources beside this file export."""

    product: Callable[..., int]
    decode: Callable[..., int]
    read: Callable[..., int]
    rms_norm: Callable[..., None]
    rotate: Callable[..., None]
    gate: Callable[..., None]
    attend: Callable[..., None]
    run: Callable[..., int]
    lanes: str  # which vectors it was compiled for: avx2, neon, plain

    @classmethod
    def open(cls, path: Path) -> "NativeLibrary":
        """Raises OSError for a file that is no library, and AttributeError for one that is not ours."""
        library = ctypes.CDLL(str(path))
        library.hydra_product.argtypes = (_POINTER, _POINTER, _INT, _POINTER, _LONG, _INT)
        library.hydra_decode.argtypes = (_POINTER, _POINTER, _LONG, _LONG, _POINTER, _INT)
        library.hydra_read.argtypes = (_POINTER, _LONG)
        library.hydra_read.restype = ctypes.c_uint64
        for name, kind in _ROW_STRUCTS.items():
            function = getattr(library, f"hydra_{name}")
            function.argtypes, function.restype = (ctypes.POINTER(kind), _INT), None
        library.hydra_run.argtypes = (ctypes.POINTER(StepStruct),)
        library.hydra_lanes.restype = ctypes.c_char_p
        return cls(
            product=library.hydra_product,
            decode=library.hydra_decode,
            read=library.hydra_read,
            rms_norm=library.hydra_rms_norm,
            rotate=library.hydra_rotate,
            gate=library.hydra_gate,
            attend=library.hydra_attend,
            run=library.hydra_run,
            lanes=library.hydra_lanes().decode(),
        )


Find: TypeAlias = Callable[[], NativeLibrary | None]  # may wait until a compiler is done


class _Promise:
    """At most one of a process; kept when it is first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._find: Find | None = None
        self._library: NativeLibrary | None = None

    def make(self, find: Find) -> None:
        with self._lock:
            self._find = find

    def keep(self) -> NativeLibrary | None:
        with self._lock:
            if self._find is not None:
                self._library, self._find = self._find(), None
            return self._library


_promise = _Promise()


def promise_library(find: Find) -> None:
    """`find` is asked once, by the first that needs the library; None where there is none to be had."""
    _promise.make(find)


def native_library() -> NativeLibrary | None:
    """The library of this process; waits for one that is being compiled."""
    return _promise.keep()
