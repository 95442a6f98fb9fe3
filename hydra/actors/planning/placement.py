"""A route as the planner holds it, and the arithmetic around it: dtype, candidates, and the size of the KV pool."""

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from hydra.actors.core.facts import NodeJoined
from hydra.actors.planning.candidates import Candidate
from hydra.actors.planning.split import LayerShare, context_needed
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, NodeId, RouteId
from hydra.protocol.messages.plans import LoadPhase, SliceLoaded
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.model.source import Peers
from hydra.protocol.refusal import refuse

LENDERS_MAX = 8  # workers named as sources of one slice
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


@attrs.define(eq=False)
class StagePlacement:
    """One stage of a route: its share, the node in the life that was planned for, and how far it has come."""

    share: LayerShare
    node: NodeJoined
    loaded: SliceLoaded | None = None
    ready: bool = False
    bytes_done: int = 0
    bytes_total: int = 0
    phase: Literal["waiting", LoadPhase] = "waiting"
    heard_s: float = 0.0  # when it last said how far it is


@attrs.define(eq=False)
class Route:
    """One epoch of one model over its stages."""

    route: RouteId
    epoch: Epoch
    dtype: Dtype
    stages: list[StagePlacement]
    kv_blocks: int = 0
    max_model_len: int = 0

    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(placement.share.node for placement in self.stages)


def route_dtype(spec: ModelSpec, wanted: str, nodes: list[NodeJoined]) -> Dtype:
    """`auto`: the stored dtype if every device runs it natively, else float16, else float32. Raises RefusalError.

    float16 is out of the question for a model that is known to overflow it.
    """
    if not nodes:
        raise refuse("no_workers", "no worker has joined; start one with `python -m hydra worker`", retry_after_s=2.0)
    common = [dtype for dtype in DTYPES if all(dtype in node.offer.dtypes for node in nodes)]
    if spec.decoder.float16_overflows and "float16" in common:
        common.remove("float16")
        if wanted == "float16":
            raise refuse("unsupported", f"{spec.architecture} overflows float16; load it as float32", param="dtype")
    if wanted == "auto":
        for dtype in (spec.stored_dtype, "float16", "float32"):
            if dtype in common:
                return dtype
        raise refuse("unsupported", f"no dtype runs on every device: {_offers(nodes)}", param="dtype")
    for dtype in DTYPES:
        if dtype == wanted:
            if dtype in common:
                return dtype
            raise refuse("unsupported", f"{wanted} does not run on every device: {_offers(nodes)}", param="dtype")
    raise refuse("invalid_value", f"dtype must be auto, {', '.join(DTYPES)}, not {wanted!r}", param="dtype")


def _offers(nodes: list[NodeJoined]) -> str:
    return ", ".join(f"{node.node} offers {'/'.join(node.offer.dtypes)}" for node in nodes)


def candidates_for(
    spec: ModelSpec, dtype: Dtype, nodes: Mapping[NodeId, NodeJoined], held: Route | None, others: Iterable[Route]
) -> list[Candidate]:
    """The nodes with the memory they have left beside other models' routes, in join order.

    What a node holds is what its hello said, and what it has loaded since for the `held` route.
    """
    taken: dict[NodeId, int] = {}
    for route in others:
        for placement in route.stages:
            used = placement.share.weight_bytes + _pool_bytes(route, placement)
            taken[placement.share.node] = taken.get(placement.share.node, 0) + used
    candidates: list[Candidate] = []
    for name, node in nodes.items():
        room = node.offer.memory_total_bytes - taken.get(name, 0)
        if room > 0:
            candidates.append(Candidate(node=name, memory_bytes=room, held=_held_layers(spec, dtype, node, held)))
    return candidates


def _pool_bytes(route: Route, placement: StagePlacement) -> int:
    """What the KV pool really takes, once it has been sized; until then all that it might."""
    if not route.kv_blocks or placement.loaded is None or not placement.loaded.kv_blocks_max:
        return placement.share.kv_memory_bytes
    return placement.share.kv_memory_bytes * route.kv_blocks // placement.loaded.kv_blocks_max


def _held_layers(spec: ModelSpec, dtype: Dtype, node: NodeJoined, route: Route | None) -> frozenset[int]:
    for placement in route.stages if route is not None and route.dtype == dtype else ():
        if placement.node is node and placement.loaded is not None:
            return frozenset(range(placement.share.first_layer, placement.share.end_layer))
    copy = (spec.fingerprint, spec.quantize, dtype)
    same = [held for held in node.held if (held.fingerprint, held.quantize, held.dtype) == copy]
    return frozenset(layer for held in same for layer in held.layers)


def lane_source(coordinator: Endpoint | None, weight_sources: Iterable[NodeJoined]) -> tuple[Peers, ...]:
    """Where a slice may be had on the store lane, as LoadSlice names it: all who may hold it as one source, the
    coordinator first. Nothing, when nobody lends."""
    workers = [node.store_addr for node in weight_sources if node.store_addr is not None][:LENDERS_MAX]
    endpoints = tuple(endpoint for endpoint in (coordinator, *workers) if endpoint is not None)
    return (Peers(endpoints),) if endpoints else ()


def pool_size(spec: ModelSpec, route: Route, context_tokens: int, block_size: int, running_max: int) -> tuple[int, int]:
    """(KV blocks, max_model_len) of a route: the least any stage can hold, and no more than could ever be used.

    `context_tokens` as in Terms, checked. Raises RefusalError does_not_fit when one sequence of the needed length finds
    no room.
    """
    limit = context_tokens or spec.max_positions
    useful = running_max * -(-limit // block_size)
    blocks = min(useful, *(placement.loaded.kv_blocks_max for placement in route.stages if placement.loaded))
    needed = context_needed(spec, context_tokens)
    if blocks * block_size < needed:
        short = min(
            (placement for placement in route.stages if placement.loaded),
            key=lambda placement: placement.loaded.kv_blocks_max if placement.loaded else 0,
        )
        raise refuse(
            "does_not_fit",
            f"{short.share.node} has room for {blocks} KV blocks of {block_size} tokens; "
            f"one sequence of {needed} tokens needs {-(-needed // block_size)}",
        )
    return blocks, min(limit, blocks * block_size)
