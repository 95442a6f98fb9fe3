"""One device at work: it holds slices and pools, and turns a Run into an Outcome. Satisfies the actors' Compute port.

Calls come from two threads: loads from the loader, `launch` and `collect` from the compute thread; a slice or a pool
that is replaced is swapped in whole. On the CPU and on mps `launch` does all the work.
"""

import time
import warnings
from collections.abc import Callable

import attrs
import numpy as np
import psutil
import torch
from torch import Tensor

from hydra.kernels.kv_pool import KvPool, spans_of
from hydra.kernels.sampling import sample
from hydra.kernels.slice import Slice
from hydra.kernels.weights import TORCH_DTYPES
from hydra.protocol.batch import OpenRow, Outcome, Run
from hydra.protocol.blob import Blob
from hydra.protocol.ids import Attempt, RouteId, RowId
from hydra.protocol.messages import DeviceOffer, Held, LoadSlice
from hydra.protocol.model_spec import Dtype
from hydra.protocol.slice_facts import SliceFacts

BLOB_TYPES: dict[torch.dtype, Dtype] = {dtype: name for name, dtype in TORCH_DTYPES.items()}  # type: ignore[misc]


@attrs.define(eq=False)
class Runner:
    """`dtypes` restricts what the device offers; `memory_bytes` caps what it lets the cluster use."""

    device_name: str
    threads: int = 0
    dtypes: tuple[Dtype, ...] | None = None
    memory_bytes: int = 0
    _device: torch.device = attrs.field(init=False)
    _slices: dict[RouteId, Slice] = attrs.field(factory=dict, init=False)
    _orders: dict[RouteId, LoadSlice] = attrs.field(factory=dict, init=False)
    _pools: dict[RouteId, KvPool] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._device = torch.device(self.device_name)
        if self.threads:
            torch.set_num_threads(self.threads)

    # ------------------------------------------------------------ what it has

    def offer(self) -> DeviceOffer:
        total, free, name = self._memory()
        if self.memory_bytes:
            total, free = min(total, self.memory_bytes), min(free, self.memory_bytes)
        return DeviceOffer(
            device=self.device_name,
            name=name,
            dtypes=self.dtypes or self._native_dtypes(),
            memory_total_bytes=total,
            memory_free_bytes=free,
        )

    def held(self) -> tuple[Held, ...]:
        return tuple(
            Held(fingerprint=held.spec.fingerprint, dtype=self._orders[route].dtype, layers=tuple(sorted(held.layers)))
            for route, held in self._slices.items()
            if held.layers
        )

    def _memory(self) -> tuple[int, int, str]:
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return total, free, torch.cuda.get_device_name(self._device)
        memory = psutil.virtual_memory()
        return memory.total, memory.available, self._device.type

    def _native_dtypes(self) -> tuple[Dtype, ...]:
        if self._device.type == "cuda":
            major, _ = torch.cuda.get_device_capability(self._device)
            return ("float32", "bfloat16", "float16") if major >= 8 else ("float32", "float16")
        return ("float32", "float16") if self._device.type == "mps" else ("float32",)

    # ------------------------------------------------------------ loading

    def load(self, order: LoadSlice, progress: Callable[[int, int], None]) -> SliceFacts:
        began_s = time.monotonic()
        self.free_pool(order.route)
        held = self._slices.get(order.route) or self._inventory(order)
        same = held is not None and held.spec.fingerprint == order.spec.fingerprint and held.dtype == order.dtype
        if held is None or not same:
            self._slices.pop(order.route, None)
            held = Slice(order.spec, order.dtype, self._device)
        self._orders[order.route] = order
        try:
            read_bytes = held.load(order, progress)
        except BaseException:
            self.drop(order.route)
            raise
        self._slices[order.route] = held
        layers = order.end_layer - order.first_layer
        block_bytes = order.block_size * order.spec.kv_token_bytes(layers, order.dtype)
        return SliceFacts(
            weight_bytes=held.weight_bytes(),
            read_bytes=read_bytes,
            kv_blocks_max=order.kv_memory_bytes // block_bytes,
            load_s=time.monotonic() - began_s,
        )

    def _inventory(self, order: LoadSlice) -> Slice | None:
        """Weights kept from a route of a former life of the coordinator."""
        for route, held in list(self._slices.items()):
            same = held.spec.fingerprint == order.spec.fingerprint and held.dtype == order.dtype
            if same and route not in self._pools:
                del self._slices[route]
                self._orders.pop(route, None)
                return held
        return None

    def activate(self, route: RouteId, kv_blocks: int) -> None:
        order, held = self._orders[route], self._slices[route]
        self._pools[route] = KvPool.make(
            sorted(held.layers),
            kv_blocks,
            order.block_size,
            order.spec.n_kv_heads,
            order.spec.head_dim,
            dtype=TORCH_DTYPES[order.dtype],
            device=self._device,
        )
        self._warm_up(order, held, self._pools[route])

    @torch.inference_mode()
    def _warm_up(self, order: LoadSlice, held: Slice, pool: KvPool) -> None:
        """One prefill and one decode step in the pool's first block, which nobody owns yet."""
        for length, position in ((2, 2), (1, 3)):
            row = OpenRow(row=RowId(0), attempt=Attempt(0), position=position, blocks=[0])
            spans = spans_of((row,), [length], pool.block_size, self._device)
            positions = torch.arange(position - length, position, device=self._device)
            if order.first_layer == 0:
                x = torch.zeros(length, dtype=torch.int64, device=self._device)
            else:
                x = torch.zeros(length, order.spec.hidden, dtype=TORCH_DTYPES[order.dtype], device=self._device)
            x = held.forward(x, positions, pool, spans)
            if order.end_layer == order.spec.n_layers:
                held.logits(x[-1:])

    def free_pool(self, route: RouteId) -> None:
        self._pools.pop(route, None)

    def drop(self, route: RouteId) -> None:
        self._pools.pop(route, None)
        self._slices.pop(route, None)
        self._orders.pop(route, None)

    # ------------------------------------------------------------ running

    def launch(self, run: Run) -> Outcome:
        return self._run(run)

    def collect(self, ticket: Outcome) -> Outcome:
        return ticket

    @torch.inference_mode()
    def _run(self, run: Run) -> Outcome:
        order, held, pool = self._orders[run.route], self._slices[run.route], self._pools[run.route]
        batch = run.batch
        lengths = batch.length.tolist()
        spans = spans_of(run.rows, lengths, pool.block_size, self._device)
        x, positions = self._inputs(run, lengths)
        x = held.forward(x, positions, pool, spans)
        if order.end_layer < order.spec.n_layers:
            return Outcome(hidden=to_blob(x))
        sampled = np.flatnonzero(batch.sample)
        if len(sampled) == 0:
            return Outcome()
        last = np.cumsum(batch.length)[sampled] - 1
        rows = [run.rows[index] for index in sampled]
        logits = held.logits(x if len(last) == len(x) else x[torch.from_numpy(last).to(self._device)])
        token, logprobs = sample(logits, rows)
        return Outcome(token=token, logprobs=logprobs)

    def _inputs(self, run: Run, lengths: list[int]) -> tuple[Tensor, Tensor]:
        batch = run.batch
        if batch.n_tokens == batch.n_rows:
            positions = torch.from_numpy(batch.position.astype(np.int64))
        else:
            runs = [torch.arange(at, at + n) for at, n in zip(batch.position.tolist(), lengths, strict=True)]
            positions = torch.cat(runs)
        if run.hidden is None:
            x = torch.from_numpy(batch.tokens.astype(np.int64))
        else:
            x = from_blob(run.hidden)
        return x.to(self._device), positions.to(self._device)


def to_blob(x: Tensor) -> Blob:
    """A contiguous tensor as bytes in transit, without a copy on the CPU."""
    x = x.contiguous()
    data = x.cpu().view(-1).view(torch.uint8).numpy().data
    return Blob(BLOB_TYPES[x.dtype], tuple(x.shape), data)


def from_blob(blob: Blob) -> Tensor:
    """The tensor over the blob's own bytes; it is only ever read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch dislikes read-only buffers; nothing writes to this one
        return torch.frombuffer(blob.data, dtype=TORCH_DTYPES[blob.dtype]).view(blob.shape)
