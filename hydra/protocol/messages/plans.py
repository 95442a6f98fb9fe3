"""A route's life as Planner and stages speak of it, and who can reach whom."""

from typing import Literal

import attrs

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import AskId, Epoch, Generation, RouteId
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import ModelSpec, StoredFile, TensorRange
from hydra.protocol.model.source import Source
from hydra.protocol.refusal import Refusal

LoadPhase = Literal["fetching", "reading"]


@attrs.frozen(kw_only=True)
class LoadSlice:
    """Planner -> Stage. Fence at this epoch, free the pool, hold exactly these layers, answer SliceLoaded.

    `tensors` are the byte ranges of the slice, `files` all weights files of the model, `sources` where to read them,
    best first.
    """

    route: RouteId
    epoch: Epoch
    spec: ModelSpec
    dtype: Dtype
    first_layer: int
    end_layer: int
    tensors: tuple[TensorRange, ...]
    sources: tuple[Source, ...]
    files: tuple[StoredFile, ...] = ()
    block_size: int
    kv_memory_bytes: int  # the pool may use so much of this node's memory


@attrs.frozen(kw_only=True)
class LoadProgress:
    """Stage -> Planner while loading: a few hundred times per load, and every few seconds while bytes come.

    Bytes of the slice: first those that are on this machine ("fetching"), then those read from it ("reading").
    """

    route: RouteId
    epoch: Epoch
    bytes_done: int
    bytes_total: int
    phase: LoadPhase = "reading"


@attrs.frozen(kw_only=True)
class SliceLoaded:
    """Stage -> Planner. The weights are in place and the old pool is gone; so many KV blocks would fit."""

    route: RouteId
    epoch: Epoch
    kv_blocks_max: int
    weight_bytes: int
    read_bytes: int
    load_s: float


@attrs.frozen(kw_only=True)
class LoadFailed:
    """Stage -> Planner, of a load or an activation. Nothing half-loaded is left behind."""

    route: RouteId
    epoch: Epoch
    refusal: Refusal


@attrs.frozen(kw_only=True)
class Activate:
    """Planner -> Stage. Make the pool, warm up, connect to the next hop, answer Ready."""

    route: RouteId
    epoch: Epoch
    kv_blocks: int
    next_addr: Endpoint  # the next stage's pipeline address, or the results address after the last
    credits: int  # micro-batches that may be in flight: the bound of every data queue on this route
    stage_index: int
    n_stages: int


@attrs.frozen(kw_only=True)
class Ready:
    """Stage -> Planner. I accept steps of this epoch."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class Fenced:
    """Stage -> Planner, from the compute thread itself: nothing older than this epoch will leave me any more."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class DropSlice:
    """Planner -> Stage. Fence, free the pool and forget the weights of this route."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class RouteBroken:
    """Stage or Broker -> Planner. A gap in the steps, or a next hop that takes nothing: this epoch is finished.

    `side`: what fails is how the sender is reached ("in": steps to a stage, results to the Broker), or its own sending.
    """

    route: RouteId
    epoch: Epoch
    why: str
    side: Literal["in", "out"]


@attrs.frozen(kw_only=True)
class Dial:
    """Planner -> a worker's Scout. Do they answer? On the data lane `step_addrs`, on the store lane `store_addrs`."""

    ask: AskId
    step_addrs: tuple[Endpoint, ...]
    store_addrs: tuple[Endpoint, ...]


@attrs.frozen(kw_only=True)
class Unanswered:
    """An address that was dialled in vain."""

    addr: Endpoint
    reason: str


@attrs.frozen(kw_only=True)
class Dialled:
    """Scout -> Planner. All that were not named have answered."""

    ask: AskId
    unanswered: tuple[Unanswered, ...]


@attrs.frozen(kw_only=True)
class ReachReport:
    """Planner -> a worker's Member. Why no plan has you; empty: from now on plans may have you."""

    generation: Generation
    fault: str
