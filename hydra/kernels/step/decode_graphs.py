"""Decode steps captured once and replayed: on a CUDA device the host then launches one graph instead of every kernel.

A graph belongs to a number of rows; fewer rows are made up to the next number with rows that write to a block which
nobody owns. What differs between steps lies in one set of tensors that all graphs read. Graphs hold the addresses of
their slice's weights and pool: they go when either goes. Knows no step in flight: replays of one set must be enqueued
on one stream.
"""

import numpy as np
import torch
from torch import Tensor

from hydra.kernels.attention.kv_pool import KvPool
from hydra.kernels.model.decode_step import DecodeColumns, DecodeInputs, empty_inputs, n_fields
from hydra.kernels.model.slice import Slice, decode_rows
from hydra.kernels.tensors import to_device

SIZES = (1, 2, 4, 8, 16, 32, 64)  # rows; a step of more is launched kernel by kernel
SPARE_BLOCKS = 1  # of the pool, for the rows that make up a number


class DecodeGraphs:
    """Of one steady slice over one pool, whose last block is the spare one. Captures when it is made."""

    def __init__(self, part: Slice, pool: KvPool) -> None:
        self._part, self._pool = part, pool
        self._spare = pool.n_blocks - SPARE_BLOCKS
        reach = -(-part.spec.max_positions // pool.block_size)
        self._inputs = empty_inputs(
            n_fields(part.views, part.rotaries), SIZES[-1], min(pool.n_blocks, reach), pool.block_size, part.device
        )
        self._hidden = None
        if not part.is_first:
            self._hidden = torch.zeros(SIZES[-1], part.spec.hidden, dtype=part.dtype, device=part.device)
        self._memory = torch.cuda.graph_pool_handle()
        self._captured = {size: self._capture(size) for size in reversed(SIZES)}

    def takes(self, columns: DecodeColumns) -> bool:
        return columns.n_rows <= SIZES[-1] and columns.table.shape[1] <= self._inputs.table.shape[1]

    def replay(self, columns: DecodeColumns, hidden: Tensor | None) -> Tensor:
        """What `decode_rows` returns. Enqueues on the current stream; later replays do not overwrite the answer."""
        n_rows = columns.n_rows
        size = next(size for size in SIZES if size >= n_rows)
        self._feed(columns.padded(size, self._spare))
        if self._hidden is not None:
            assert hidden is not None
            self._hidden[:n_rows].copy_(hidden)
        graph, answer = self._captured[size]
        graph.replay()
        return answer[:n_rows].clone()

    def _feed(self, columns: DecodeColumns) -> None:
        n_rows, n_blocks = columns.table.shape
        self._inputs.fields[:, :n_rows].copy_(to_device(columns.fields, self._part.device))
        self._inputs.table[:n_rows, :n_blocks].copy_(to_device(columns.table, self._part.device))

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Twice plainly first, so that what is compiled or chosen at a first call is not in the graph."""
        inputs = self._of_size(size)
        hidden = None if self._hidden is None else self._hidden[:size]
        nobody = DecodeColumns(
            np.zeros((len(self._inputs.fields), 0), np.int64), np.zeros((0, 1), np.int32), self._pool.block_size
        )
        self._feed(nobody.padded(size, self._spare))
        capture_stream = torch.cuda.Stream(self._part.device)  # type: ignore[no-untyped-call]
        capture_stream.wait_stream(torch.cuda.current_stream(self._part.device))
        with torch.cuda.stream(capture_stream):
            for _ in range(2):
                decode_rows(self._part, self._pool, inputs, hidden)
        torch.cuda.synchronize(self._part.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=capture_stream, capture_error_mode="thread_local"):
            answer = decode_rows(self._part, self._pool, inputs, hidden)
        return graph, answer

    def _of_size(self, size: int) -> DecodeInputs:
        return DecodeInputs(self._inputs.fields[:, :size], self._inputs.table[:size], self._inputs.block_size)
