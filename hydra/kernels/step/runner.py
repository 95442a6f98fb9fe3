"""One device at work: slices of models loaded, activated, stepped and dropped, as the stage orders it.

`Runner` is what the stage calls Compute. Loading runs on a thread of its own beside the steps of other routes; what is
no longer needed is freed before the difference is read, and a refused load leaves nothing of its route. Knows no epoch,
no fence and no order of steps: the stage hands it only what may run.
"""

import threading
import time
from functools import partial
from pathlib import Path

import attrs
import torch

from hydra.kernels.attention.kv_pool import KvPool
from hydra.kernels.devices import device_name, finish, give_back, memory_bytes, native_dtypes, runs_triton
from hydra.kernels.model.slice import Captured, Slice, build_slice, forward
from hydra.kernels.step.decode_graphs import SPARE_BLOCKS, DecodeGraphs
from hydra.kernels.step.host_steps import make_host_steps
from hydra.kernels.step.lanes import DeviceLane, HostLane
from hydra.kernels.step.step_memory import refused_without_memory, within_memory
from hydra.kernels.step.warmup import warm_up
from hydra.kernels.tensors import TORCH_DTYPES
from hydra.kernels.weights.part_reader import fetch_parts
from hydra.kernels.weights.part_weights import PartWeights, make_part_weights
from hydra.kernels.weights.resident_weights import ResidentWeights, WeightsKey
from hydra.protocol.batch import Outcome, Run
from hydra.protocol.ids import RouteId
from hydra.protocol.messages.membership import DeviceOffer, Held
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.layer_spec import LayerSpec, MoeSpec
from hydra.protocol.model.layout import Part, part_of, slice_parts
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.model.source import directory_of
from hydra.protocol.progress import Progress
from hydra.protocol.refusal import RefusalError, refuse


@attrs.define(eq=False)
class _Route:
    """A loaded slice, its pool once activated, and whether only its weights are being kept."""

    copy: WeightsKey
    parts: frozenset[Part]
    slice: Slice
    block_size: int
    pool: KvPool | None = None
    captured: Captured | None = None  # decode steps over that pool
    idle: bool = False

    def let_go(self) -> None:
        """Of the pool, and of what holds its addresses."""
        self.pool = self.captured = None


class Runner:
    """A device by name: "cpu", "cuda:0", "mps". `memory_bytes` caps what it offers and holds (0 or None: no cap).

    `dtypes` replaces the dtypes it offers by itself; an order in any other is refused.
    """

    def __init__(
        self,
        device: str,
        *,
        threads: int | None = None,
        dtypes: tuple[Dtype, ...] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self._device = torch.device(device)
        if threads:
            torch.set_num_threads(threads)
        self._dtypes = native_dtypes(self._device) if dtypes is None else dtypes
        self._cap = memory_bytes or None
        self._resident = ResidentWeights()
        self._routes: dict[RouteId, _Route] = {}
        self._loading = threading.Lock()
        self._lane = _lane(self._device)

    def offer(self) -> DeviceOffer:
        total, free = memory_bytes(self._device)
        if self._cap is not None:
            total = min(total, self._cap)
            free = max(0, min(free, total - self._used_bytes()))
        return DeviceOffer(
            device=str(self._device),
            name=device_name(self._device),
            dtypes=self._dtypes,
            memory_total_bytes=total,
            memory_free_bytes=free,
            kernels="triton" if runs_triton(self._device) else "torch",
        )

    def held(self) -> tuple[Held, ...]:
        return self._resident.held()

    def still_to_read(self, order: LoadSlice) -> LoadSlice | None:
        """As Compute.still_to_read."""
        needed = slice_parts(order.spec, order.first_layer, order.end_layer)
        missing = needed - self._resident.parts(_copy_of(order)).keys()
        if not missing:
            return None
        return attrs.evolve(order, tensors=tuple(source for source in order.tensors if _goes_to(source, missing)))

    def load(self, order: LoadSlice, progress: Progress) -> SliceFacts:
        started = time.monotonic()
        with self._loading, torch.inference_mode():
            self._routes.pop(order.route, None)
            try:
                with refused_without_memory(self._device, "loading"):
                    loaded, read_bytes, pack_s = self._load(order, progress)
            except BaseException:
                self._tidy()
                raise
            self._routes[order.route] = loaded
            held = self._resident.parts(loaded.copy)
        cache = order.spec.cache_size(order.first_layer, order.end_layer, order.dtype)
        return SliceFacts(
            weight_bytes=sum(held[part].n_bytes for part in loaded.parts),
            read_bytes=read_bytes,
            kv_blocks_max=cache.blocks_in(order.kv_memory_bytes, order.block_size),
            load_s=time.monotonic() - started,
            pack_s=pack_s,
        )

    def _load(self, order: LoadSlice, progress: Progress) -> tuple[_Route, int, float]:
        """The route, the bytes read for it, and the seconds that packing took."""
        _check(order, self._dtypes)
        copy = _copy_of(order)
        parts = slice_parts(order.spec, order.first_layer, order.end_layer)
        self._make_room(order, copy, parts)
        read_bytes, pack_s = self._fetch(order, copy, parts, progress)
        held, dtype = self._resident.parts(copy), TORCH_DTYPES[order.dtype]
        piece = build_slice(order.spec, order.first_layer, order.end_layer, held, dtype, self._device)
        finish(self._device)
        return _Route(copy, parts, piece, order.block_size), read_bytes, pack_s

    def activate(self, route: RouteId, kv_blocks: int) -> None:
        loaded = self._routes[route]
        loaded.let_go()
        give_back(self._device)
        what = f"making a KV pool of {kv_blocks} blocks and warming up"
        try:
            with refused_without_memory(self._device, what), torch.inference_mode():
                self._make_pool(loaded, kv_blocks)
        except RefusalError:
            loaded.let_go()
            give_back(self._device)
            raise
        loaded.idle = False

    def _make_pool(self, loaded: _Route, kv_blocks: int) -> None:
        warm_up(loaded.slice, self._lane, loaded.block_size)
        if loaded.slice.steady:
            loaded.pool = loaded.slice.pool(kv_blocks + SPARE_BLOCKS, loaded.block_size)
            loaded.captured = DecodeGraphs(loaded.slice, loaded.pool)
        else:
            loaded.pool = loaded.slice.pool(kv_blocks, loaded.block_size)
            loaded.captured = make_host_steps(loaded.slice, loaded.pool)

    def drop(self, route: RouteId) -> None:
        with self._loading:
            if self._routes.pop(route, None) is not None:
                self._tidy()

    def free_pool(self, route: RouteId) -> None:
        if (loaded := self._routes.get(route)) is not None:
            loaded.let_go()
            loaded.idle = True
            give_back(self._device)

    def launch(self, run: Run) -> object:
        loaded = self._routes[run.route]
        pool = loaded.pool
        if pool is None:
            raise RuntimeError(f"route {run.route} was stepped before it was activated")
        work = partial(forward, loaded.slice, pool, run.batch, run.rows, captured=loaded.captured)
        with torch.inference_mode():
            return within_memory(self._device, lambda: self._lane.launch(run.hidden, work))

    def collect(self, ticket: object) -> Outcome:
        if isinstance(ticket, Outcome) and ticket.out_of_memory:
            return ticket
        with torch.inference_mode():
            return within_memory(self._device, lambda: self._lane.collect(ticket))

    def _make_room(self, order: LoadSlice, copy: WeightsKey, parts: frozenset[Part]) -> None:
        """Frees what neither this order nor another route needs. Idle routes of the same weights are superseded."""
        self._forget([route for route, other in self._routes.items() if other.idle and other.copy == copy])
        self._tidy(copy, parts)
        if self._cap is None:
            return
        if self._missing_bytes(order, copy, parts) + self._used_bytes() > self._cap:
            self._forget([route for route, other in self._routes.items() if other.idle])
            self._tidy(copy, parts)
        if (missing := self._missing_bytes(order, copy, parts)) + self._used_bytes() > self._cap:
            raise refuse(
                "does_not_fit",
                f"layers {order.first_layer} to {order.end_layer - 1} need {missing} bytes more on {self._device}; "
                f"{self._used_bytes()} of {self._cap} are taken: give the worker more memory or use more workers",
            )

    def _forget(self, routes: list[RouteId]) -> None:
        for route in routes:
            del self._routes[route]

    def _missing_bytes(self, order: LoadSlice, copy: WeightsKey, parts: frozenset[Part]) -> int:
        held = sum(weights.n_bytes for part, weights in self._resident.parts(copy).items() if part in parts)
        return order.spec.slice_bytes(order.first_layer, order.end_layer, order.dtype) - held

    def _fetch(
        self, order: LoadSlice, copy: WeightsKey, parts: frozenset[Part], progress: Progress
    ) -> tuple[int, float]:
        missing = parts - self._resident.parts(copy).keys()
        folder = Path(directory_of(order.sources)) if missing else Path()  # what is in memory is read nowhere
        read, read_bytes = fetch_parts(
            order.spec,
            missing,
            order.tensors,
            folder,
            TORCH_DTYPES[order.dtype],
            self._device,
            progress,
        )
        read_at_s = time.monotonic()
        weights: dict[Part, PartWeights] = {}
        while read:
            part, tensors = read.popitem()
            weights[part] = make_part_weights(tensors)
            del tensors  # one after the other: at most one part is held twice
        self._resident.put(copy, weights)
        return read_bytes, time.monotonic() - read_at_s

    def _tidy(self, copy: WeightsKey | None = None, parts: frozenset[Part] = frozenset()) -> None:
        """Keeps what the routes claim, and beside it these parts."""
        claims: dict[WeightsKey, frozenset[Part]] = {} if copy is None else {copy: parts}
        for route in self._routes.values():
            claims[route.copy] = claims.get(route.copy, frozenset()) | route.parts
        self._resident.keep_only(claims)
        give_back(self._device)

    def _used_bytes(self) -> int:
        return self._resident.n_bytes + sum(r.pool.n_bytes for r in list(self._routes.values()) if r.pool is not None)


def _lane(device: torch.device) -> DeviceLane:
    if device.type != "cuda":
        return HostLane(device)
    from hydra.kernels.step.cuda_lane import CudaLane  # only where there is a device for it

    return CudaLane(device)


def _goes_to(source: TensorRange, parts: frozenset[Part]) -> bool:
    """A tensor that goes nowhere is kept: `load` refuses it by name."""
    try:
        return part_of(source) in parts
    except KeyError:
        return True


def _copy_of(order: LoadSlice) -> WeightsKey:
    return (order.spec.fingerprint, order.spec.quantize, order.dtype)


def _check(order: LoadSlice, dtypes: tuple[Dtype, ...]) -> None:
    spec = order.spec
    if order.dtype not in dtypes:
        raise refuse("unsupported", f"this worker runs {', '.join(dtypes)}, not {order.dtype}")
    if not order.sources:
        raise refuse("bad_model", "the order names no source to read the weights from")
    for layer in spec.decoder.kinds:
        _check_layer(layer)
    if not 0 <= order.first_layer < order.end_layer <= spec.n_layers:
        raise refuse(
            "bad_model", f"the model has {spec.n_layers} layers, not {order.first_layer} to {order.end_layer - 1}"
        )


def _check_layer(layer: LayerSpec) -> None:
    """What a spec may get wrong that no tensor's shape would show."""
    heads, cache, feed_forward = layer.attention, layer.cache, layer.feed_forward
    if heads.n_heads % heads.n_kv_heads:
        raise refuse("bad_model", f"{heads.n_heads} heads cannot share {heads.n_kv_heads} key heads")
    if heads.rope.dim % 2 or not 0 < heads.rope.dim <= heads.head_dim:
        raise refuse("bad_model", f"heads of {heads.head_dim} channels cannot be rotated as the model's spec says")
    if heads.rope.query_growth and heads.rope.original_max_positions < 1:
        raise refuse("bad_model", "the model's spec lets queries grow with contexts of no positions")
    if (cache.n_heads, cache.head_dim) != (heads.n_kv_heads, heads.head_dim):
        raise refuse("bad_model", "the model's spec has a cache for other heads than the attention before it has")
    if isinstance(feed_forward, MoeSpec) and feed_forward.top_k > feed_forward.n_experts:
        raise refuse("bad_model", "the model's spec has sparse layers without as many experts as a token asks for")
