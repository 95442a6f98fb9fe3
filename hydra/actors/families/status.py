"""ClusterStatus answers questions about the whole cluster: what /api/cluster/status and /metrics show.

It reads the three machines of the coordinator, and decides nothing.
"""

from collections.abc import Callable

import attrs

from hydra.actors.core.facts import Undelivered
from hydra.actors.core.machine import Effect, Event, Received, Send
from hydra.actors.membership.registry import Lease, Registry
from hydra.actors.planning.placement import Route, StagePlacement
from hydra.actors.planning.planner import Planner
from hydra.actors.planning.served_model import FURTHEST
from hydra.actors.scheduling.broker import Broker
from hydra.protocol.ids import AskId
from hydra.protocol.messages.membership import NodeState
from hydra.protocol.messages.models import (
    LossStatus,
    ModelStatus,
    NodeStatus,
    ProcessStatus,
    Sample,
    StageStatus,
    StatusReply,
    StatusRequest,
)
from hydra.protocol.model.model_spec import ModelCard


@attrs.define(eq=False)
class ClusterStatus:
    registry: Registry
    planner: Planner
    broker: Broker
    pid: int
    malformed: Callable[[], int]  # messages dropped at the door
    more: Callable[[], tuple[Sample, ...]] = lambda: ()  # what the coordinator counts beside its actors
    losses: Callable[[], tuple[LossStatus, ...]] = lambda: ()

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(sender=sender, message=StatusRequest(ask=ask)):
                return [Send(sender, self.status(ask, now_s))]
            case Undelivered():
                return []  # a cluster beyond what one answer holds: who asked has a deadline
            case _:
                raise AssertionError(f"the status cannot be told {event!r}")

    def status(self, ask: AskId, now_s: float) -> StatusReply:
        members = self.registry.members()
        processes = [ProcessStatus(role="coordinator", pid=self.pid)]
        processes += [ProcessStatus(role=m.hello.role, pid=m.hello.pid) for m in members if m.hello.role != "worker"]
        return StatusReply(
            ask=ask,
            epoch=self.registry.changes + self.planner.number,
            ready=any(phase == "ready" for _, phase, _ in self.planner.models()),
            nodes=tuple(self._node(member, now_s) for member in members if member.hello.role == "worker"),
            processes=tuple(processes),
            models=self._models(),
            samples=self._samples(),
            losses=self.losses(),
        )

    def _node(self, member: Lease, now_s: float) -> NodeStatus:
        hello = member.hello
        assert hello.device is not None and hello.pipeline_addr is not None
        fault = self.planner.fault_of(hello.node_id, now_s)
        stages: list[StageStatus] = []
        dtype = ""
        for model_id, _, route in self.planner.models():
            for placement in route.stages if route is not None else ():
                if route is not None and placement.node.generation == member.generation:
                    dtype = route.dtype
                    stages.append(_stage(model_id, route, placement))
        return NodeStatus(
            node_id=hello.node_id,
            generation=member.generation,
            host=hello.host,
            pid=hello.pid,
            state=self._state(member, fault),
            device=hello.device.device,
            kernels=hello.device.kernels,
            dtype=dtype,
            memory_total_bytes=hello.device.memory_total_bytes,
            memory_free_bytes=member.memory_free_bytes,
            last_seen_s=max(0.0, now_s - member.last_seen_s),
            pipeline_addr=str(hello.pipeline_addr),
            stages=tuple(stages),
            why=fault,
        )

    def _state(self, member: Lease, fault: str) -> NodeState:
        if member.state != "ready" or not fault:
            return member.state
        return "unreachable" if self.planner.is_tried(member.hello.node_id) else "joining"

    def _models(self) -> tuple[ModelStatus, ...]:
        return tuple(self._model(card) for card in self.planner.cards())

    def _model(self, card: ModelCard) -> ModelStatus:
        """Its state and epoch are those of the deployment that has come furthest."""
        deployments = [(phase, route) for model_id, phase, route in self.planner.models() if model_id == card.model_id]
        phase, route = min(deployments, key=lambda deployment: FURTHEST.index(deployment[0]))
        blocks, free, running, waiting = self.broker.statistics(card.model_id)
        return ModelStatus(
            model_id=card.model_id,
            model_path=card.model_path,
            architecture=card.architecture,
            total_layers=card.total_layers,
            state=phase,
            epoch=str(route.epoch) if route is not None else "",
            max_model_len=card.max_model_len,
            kv_blocks_total=blocks,
            kv_blocks_free=free,
            running=running,
            waiting=waiting,
            replicas=len(deployments),
            quantize=card.quantize,
            replicas_ready=sum(phase == "ready" for phase, _ in deployments),
        )

    def _samples(self) -> tuple[Sample, ...]:
        stale = "Steps and results of another epoch that were refused."
        return (
            Sample(
                name="hydra_stale_dropped_total",
                kind="counter",
                help=stale,
                value=self.registry.total_stale_dropped(),
                labels=(("reason", "stage"),),
            ),
            Sample(
                name="hydra_stale_dropped_total",
                kind="counter",
                help=stale,
                value=self.broker.stale_dropped,
                labels=(("reason", "result"),),
            ),
            Sample(
                name="hydra_generated_tokens_total",
                kind="counter",
                help="Tokens handed to frontends.",
                value=self.broker.tokens_sent,
            ),
            Sample(
                name="hydra_replans_total",
                kind="counter",
                help="Epochs begun since this coordinator started.",
                value=self.planner.number,
            ),
            Sample(
                name="hydra_malformed_messages_total",
                kind="counter",
                help="Messages refused at the coordinator's door.",
                value=self.malformed(),
            ),
            Sample(
                name="hydra_nodes",
                kind="gauge",
                help="Workers that hold a generation.",
                value=sum(1 for member in self.registry.members() if member.hello.role == "worker"),
            ),
            *(log_lines_lost_sample(role, lines) for role, lines in self.registry.log_lines_lost().items()),
            *self.more(),
        )


def log_lines_lost_sample(role: str, lines: int) -> Sample:
    """Of all processes of one role; the coordinator's own is its process's to tell."""
    text = "Log lines that could not be written."
    return Sample(name="hydra_log_lines_lost_total", kind="counter", help=text, value=lines, labels=(("role", role),))


def _stage(model_id: str, route: Route, placement: StagePlacement) -> StageStatus:
    state = "ready" if placement.ready else "loaded" if placement.loaded is not None else "loading"
    share = placement.share
    return StageStatus(model_id=model_id, first_layer=share.first_layer, end_layer=share.end_layer, state=state)
