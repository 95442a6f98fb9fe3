"""Decode steps of a few rows on the CPU as one call: a slice's layers, and its head, written down as a program for C.

The program asks for what the layers' own objects would ask for, in the same order, of the same compiled functions: the
bits are theirs, and only the time of asking for one thing after the other in Python is gone. A slice of which something
has no compiled form has no program. Holds the addresses of its slice's weights and pool: it goes when either goes.
Knows no step in flight: one run at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hydra.kernels.attention.host_decode import HostDecode
from hydra.kernels.attention.kv_pool import KvPool, LayerCache
from hydra.kernels.model.decode_step import SLOT, DecodeColumns, on_device
from hydra.kernels.model.decoder import Block, ParallelBlock, SandwichBlock, SequentialBlock
from hydra.kernels.model.feed_forward import Dense, FeedForward
from hydra.kernels.model.norms import Norm
from hydra.kernels.model.rotary import NativeTurn
from hydra.kernels.model.slice import Slice, enter, rotary_tables
from hydra.kernels.model.softmax_attention import NormedTurn, SoftmaxAttention
from hydra.kernels.native.library import native_library
from hydra.kernels.native.products import INPUT_ROWS_MAX, NativeMatrix
from hydra.kernels.native.program import OperationKind, Program, ProgramBuilder, ProgramStep, RotationTable
from hydra.kernels.native.row_functions import NativeGate, NativeRmsNorm
from hydra.kernels.weights.encoded.encoded_linear import EncodedLinear
from hydra.kernels.weights.encoded.native_form import order_of
from hydra.kernels.weights.linear import Linear, NativeLinear, StackedLinear


class _NoProgramError(Exception):
    """Something has no compiled form."""


class HostSteps:
    """Of one slice over one pool. `takes` and `replay` as Captured has them."""

    def __init__(self, part: Slice, program: Program, hidden: int, logits: int | None) -> None:
        self._part, self._program, self._hidden, self._logits = part, program, hidden, logits

    def takes(self, columns: DecodeColumns) -> bool:
        return columns.n_rows <= INPUT_ROWS_MAX

    def replay(self, columns: DecodeColumns, hidden: Tensor | None) -> Tensor:
        part, program, n_rows = self._part, self._program, columns.n_rows
        inputs = on_device(columns, columns.block_size, part.device)
        plan = inputs.plan(len(part.views))
        assert plan.paged is not None
        program.memory[self._hidden][:n_rows] = enter(part, inputs.tokens, hidden)
        tables = [
            RotationTable(table.cos, table.signed_sin, table.query_scale)
            for table in rotary_tables(part, plan.positions, inputs.lengths(len(part.views)))
        ]
        firsts = [rows.first for rows in plan.paged]
        step = ProgramStep(tables, firsts, inputs.fields[SLOT], inputs.reach, inputs.table, inputs.block_size)
        program.run(n_rows, step)
        if part.head is None:
            return program.memory[self._hidden][:n_rows].clone()
        if self._logits is None:
            return part.head(program.memory[self._hidden][:n_rows])
        return part.head.bend(program.memory[self._logits][:n_rows].clone())


def make_host_steps(part: Slice, pool: KvPool) -> HostSteps | None:
    """None where there is no library, or something of the slice has no compiled form."""
    library = native_library()
    if library is None or part.device.type != "cpu" or part.dtype != torch.float32:
        return None
    builder = ProgramBuilder()
    hidden, writer = builder.buffer(part.spec.hidden), _Writer(builder)
    try:
        for block, cache in zip(part.blocks, pool.layers, strict=True):
            writer.block(block, cache, hidden)
    except _NoProgramError:
        return None
    logits = None
    if part.head is not None and isinstance(part.head.norm, NativeRmsNorm) and _has_program(part.head.linear):
        normed = writer.shared("normed", part.spec.hidden)
        logits = builder.buffer(_rows_of(part.head.linear))
        writer.norm(part.head.norm, hidden, normed)
        writer.linear(part.head.linear, normed, logits)
    return HostSteps(part, builder.build(library), hidden, logits)


class _Writer:
    """Writes layers into a builder. Layers share their buffers: one is done before the next begins."""

    def __init__(self, builder: ProgramBuilder) -> None:
        self._builder = builder
        self._shared: dict[tuple[str, int], int] = {}

    def shared(self, name: str, width: int) -> int:
        """The buffer of this name and width."""
        if (name, width) not in self._shared:
            self._shared[name, width] = self._builder.buffer(width)
        return self._shared[name, width]

    def block(self, block: Block, cache: LayerCache, x: int) -> None:
        width = self._builder.width(x)
        normed, added = self.shared("normed", width), self.shared("added", width)
        match block:
            case SequentialBlock():
                self.norm(block.attention_norm, x, normed)
                self._attention(block.attention, cache, normed, added)
                self._add(added, x)
                self.norm(block.mlp_norm, x, normed)
                self._feed_forward(block.feed_forward, normed, added)
                self._add(added, x)
            case ParallelBlock():
                other = self.shared("other", width)
                self.norm(block.norm, x, normed)
                self._attention(block.attention, cache, normed, added)
                self._feed_forward(block.feed_forward, normed, other)
                self._add(other, added)
                self._add(added, x)
            case SandwichBlock():
                self.norm(block.attention_norm, x, normed)
                self._attention(block.attention, cache, normed, added)
                self.norm(block.after_attention_norm, added, normed)
                self._add(normed, x)
                self.norm(block.mlp_norm, x, normed)
                self._feed_forward(block.feed_forward, normed, added)
                self.norm(block.after_mlp_norm, added, normed)
                self._add(normed, x)
            case _:
                raise _NoProgramError

    def norm(self, norm: Norm, into: int, out: int) -> None:
        if not isinstance(norm, NativeRmsNorm):
            raise _NoProgramError
        self._norm_of(norm, into, out, 0, 1)

    def linear(self, linear: Linear, into: int, out: int) -> None:
        at = 0
        for matrix, bias in _products(linear):
            if matrix is not None:
                self._builder.product(matrix, into, out, at)
            if bias is not None:
                first = at if matrix is not None else 0
                self._builder.add(
                    OperationKind.BIAS, out, out, bias, data=bias.data_ptr(), out_at=first, columns=bias.shape[0]
                )
            at += 0 if matrix is None else matrix.struct.rows

    def _norm_of(self, norm: NativeRmsNorm, into: int, out: int, at: int, count: int) -> None:
        """Of `count` vectors behind column `at`."""
        fields = {"in_at": at, "out_at": at, "count": count, "columns": norm.weight.shape[0], "number": norm.eps}
        self._builder.add(OperationKind.NORM, into, out, norm.weight, data=norm.weight.data_ptr(), **fields)

    def _add(self, into: int, out: int) -> None:
        self._builder.add(OperationKind.ADD, into, out, columns=self._builder.width(out))

    def _attention(self, attention: object, cache: LayerCache, into: int, out: int) -> None:
        if not isinstance(attention, SoftmaxAttention):
            raise _NoProgramError
        decode, heads, kv_heads = attention.attend.decode, attention.n_heads, attention.n_kv_heads
        if not isinstance(decode, HostDecode):
            raise _NoProgramError
        width, builder = attention.head_dim, self._builder
        qkv = self.shared("qkv", (heads + 2 * kv_heads) * width)
        mixed = self.shared("mixed", heads * width)
        self.linear(attention.qkv, into, qkv)
        turn = attention.turn
        if isinstance(turn, NormedTurn):
            for norm, at, count in ((turn.query_norm, 0, heads), (turn.key_norm, heads * width, kv_heads)):
                if not isinstance(norm, NativeRmsNorm) or norm.weight.shape[0] != width:
                    raise _NoProgramError
                self._norm_of(norm, qkv, qkv, at, count)
            turn = turn.turn
        if not isinstance(turn, NativeTurn):
            raise _NoProgramError
        builder.add(OperationKind.ROTATE, qkv, qkv, index=attention.table, count=heads + kv_heads, columns=width)
        builder.add(OperationKind.GROW, qkv, qkv, index=attention.table, columns=heads * width)
        places = {"data": cache.key_slots.data_ptr(), "more": cache.value_slots.data_ptr()}
        builder.add(OperationKind.KEEP, qkv, qkv, cache, in_at=heads * width, columns=kv_heads * width, **places)
        facts = {"number": decode.scale, "softcap": decode.softcap, "index": attention.attend.view}
        sinks = None if decode.sinks is None else decode.sinks.data_ptr()
        heads_of = {"count": heads, "kv_count": kv_heads, "columns": width, "sinks": sinks}
        builder.add(OperationKind.ATTEND, qkv, mixed, decode, **places, **facts, **heads_of)
        self.linear(attention.out, mixed, out)

    def _feed_forward(self, feed_forward: FeedForward, into: int, out: int) -> None:
        if not isinstance(feed_forward, Dense) or not isinstance(feed_forward.inner, NativeGate):
            raise _NoProgramError
        width = _rows_of(feed_forward.gate_up)
        both, inner = self.shared("gate_up", width), self.shared("inner", width // 2)
        self.linear(feed_forward.gate_up, into, both)
        self._builder.add(OperationKind.GATE, both, inner, index=feed_forward.inner.kind, columns=width // 2)
        self.linear(feed_forward.down, inner, out)


def _products(linear: Linear) -> Iterator[tuple[NativeMatrix | None, Tensor | None]]:
    """The matrices, one below the other, each with its bias; of a bias of them all, at the end, the matrix is None."""
    match linear:
        case NativeLinear():
            yield linear.native, linear.bias
        case EncodedLinear() if linear.native is not None and order_of(linear.matrix) is None:
            yield linear.native, linear.bias
        case StackedLinear():
            for part in linear.parts:
                yield from _products(part)
            if linear.bias is not None:
                yield None, linear.bias
        case _:
            raise _NoProgramError


def _has_program(linear: Linear) -> bool:
    try:
        return bool(list(_products(linear)))
    except _NoProgramError:
        return False


def _rows_of(linear: Linear) -> int:
    return sum(matrix.struct.rows for matrix, _ in _products(linear) if matrix is not None)
