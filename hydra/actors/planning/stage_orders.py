"""What the stages of a route and the Broker are told of it, message by message. Pure; it decides nothing."""

from collections.abc import Iterable

from hydra.actors.core.facts import NodeJoined, RouteUp
from hydra.actors.core.machine import Effect, Send
from hydra.actors.core.names import STAGE
from hydra.actors.planning.placement import Route, StagePlacement
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch, RouteId
from hydra.protocol.messages.plans import Activate, DropSlice, LoadSlice
from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.model.source import Source

EXTRA_CREDITS = 2  # beyond one micro-batch per stage


def load(
    described: Described,
    route: Route,
    placement: StagePlacement,
    *,
    tensors: tuple[TensorRange, ...],
    sources: tuple[Source, ...],
    block_size: int,
) -> Effect:
    share = placement.share
    order = LoadSlice(
        route=route.route,
        epoch=route.epoch,
        spec=described.spec,
        dtype=route.dtype,
        first_layer=share.first_layer,
        end_layer=share.end_layer,
        tensors=tensors,
        sources=sources,
        files=described.files,
        block_size=block_size,
        kv_memory_bytes=share.kv_memory_bytes,
    )
    return Send(_stage_of(placement.node), order)


def activate(route: Route, results_addr: Endpoint) -> list[Effect]:
    """To every stage: where the next one listens; the last one sends its results to the coordinator."""
    addrs = [*(stage.node.pipeline_addr for stage in route.stages[1:]), results_addr]
    return [
        Send(
            _stage_of(stage.node),
            Activate(
                route=route.route,
                epoch=route.epoch,
                kv_blocks=route.kv_blocks,
                next_addr=addr,
                credits=len(route.stages) + EXTRA_CREDITS,
                stage_index=index,
                n_stages=len(route.stages),
            ),
        )
        for index, (stage, addr) in enumerate(zip(route.stages, addrs, strict=True))
    ]


def drop(route: RouteId, epoch: Epoch, nodes: Iterable[NodeJoined]) -> list[Effect]:
    return [Send(_stage_of(node), DropSlice(route=route, epoch=epoch)) for node in nodes]


def up(model_id: str, described: Described, route: Route, block_size: int) -> RouteUp:
    return RouteUp(
        model_id=model_id,
        route=route.route,
        epoch=route.epoch,
        nodes=route.nodes(),
        first_addr=route.stages[0].node.pipeline_addr,
        kv_blocks=route.kv_blocks,
        block_size=block_size,
        max_model_len=route.max_model_len,
        credits=len(route.stages) + EXTRA_CREDITS,
        vocab=described.spec.vocab,
        length_rule=described.spec.decoder.length_rule,
    )


def _stage_of(node: NodeJoined) -> Address:
    return Address(node.peer, STAGE)
