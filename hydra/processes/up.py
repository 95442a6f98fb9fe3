"""`up`: from settings to a parent with its children. Opens what must be open before anybody starts."""

import os
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs

from hydra.actors.families.parent import ChildCommand, python_child
from hydra.actors.families.supervisor import ChildPlan, ChildRole, Supervisor
from hydra.processes.child_spec import ChildSpec, CoordinatorSpec, FrontendSpec, WorkerSpec, secrets_env, spec_to_json
from hydra.processes.cluster_lanes import near, plan_lanes
from hydra.processes.held_port import HeldPort
from hydra.processes.host_port import HostPort
from hydra.processes.huge_pages import huge_pages_env
from hydra.processes.listening import SECOND, lock_state, open_http, require_token, settle_port
from hydra.processes.local_workers import WorkerOptions
from hydra.processes.parent_run import ParentRun
from hydra.processes.port_holders import PortHolders
from hydra.processes.port_range import PortRange
from hydra.processes.state_dir import begin_anew
from hydra.protocol.ids import NodeId
from hydra.protocol.settings.zmq import ZmqSettings
from hydra.settings import Settings

BEEN_READY = ("--been-ready", "{been_ready}")  # which the parent fills in for every life of a child


@attrs.frozen(kw_only=True)
class UpOptions:
    """What `up` was asked for, beside the settings."""

    workers: tuple[WorkerOptions, ...]
    state_dir: Path
    lan: bool
    ports: PortRange | None = None
    any_http: bool = False  # where the usual port of the API is taken, the next free one will do


@attrs.define(eq=False)
class ClusterPorts:
    """Where the cluster listens, as long as this object lives."""

    lanes: Mapping[str, HostPort]
    workers: tuple[tuple[HostPort, HostPort], ...]  # where each takes steps and lends files
    ports: list[HeldPort] = attrs.field(factory=list)

    @classmethod
    def take(cls, settings: Settings, options: UpOptions, holders: PortHolders) -> "ClusterPorts":
        """Raises Complaint."""
        planned = plan_lanes(settings.zmq, len(options.workers), lan=options.lan, ports=options.ports)
        parts = cls(lanes={}, workers=())

        def hold(name: str, address: HostPort, setting: str) -> HostPort:
            require_token(name, address, settings.cluster.join_token)
            settled, port = settle_port(name, address, setting, holders)
            parts.ports.append(port)
            return settled

        parts.lanes = {
            key: hold(f"[zmq] {key}", address, "--ports" if options.ports else f"HYDRA_ZMQ_{key.upper()}, {SECOND}")
            for key, address in planned.lanes.items()
        }
        parts.workers = tuple(
            (  # port 0: each life of the worker takes its own
                hold(f"steps to {worker.node_id}", steps, "--ports") if steps.port else steps,
                hold(f"the store of {worker.node_id}", store, "--ports") if store.port else store,
            )
            for worker, (steps, store) in zip(options.workers, planned.workers, strict=True)
        )
        return parts

    def bound(self, zmq: ZmqSettings) -> ZmqSettings:
        """As the coordinator binds them."""
        return _with_addrs(zmq, self.lanes)

    def near(self, zmq: ZmqSettings) -> ZmqSettings:
        """As processes of this machine reach them."""
        return _with_addrs(zmq, {key: near(address) for key, address in self.lanes.items()})


def _with_addrs(zmq: ZmqSettings, lanes: Mapping[str, HostPort]) -> ZmqSettings:
    return attrs.evolve(
        zmq,
        router_addr=str(lanes["router_addr"]),
        broadcast_addr=str(lanes["broadcast_addr"]),
        results_addr=str(lanes["results_addr"]),
        store_addr=str(lanes["store_addr"]),
    )


def run_up(settings: Settings, options: UpOptions, say_ready: Callable[[str], None]) -> int:
    """The whole life of `up`; paths in `settings` are absolute. Returns the exit code."""
    holders = PortHolders.of(Path(settings.model.cache_dir))
    with ExitStack() as stack:
        listener = open_http(settings.server.http_addr, holders, or_next=options.any_http)
        stack.callback(listener.close)
        held = ClusterPorts.take(settings, options, holders)
        lock_state(options.state_dir, holders)
        begin_anew(options.state_dir)
        url = f"http://{settings.server.http_addr.rpartition(':')[0]}:{listener.getsockname()[1]}"
        ports = [listener.getsockname()[1], *(port.port for port in held.ports)]
        stack.enter_context(holders.card(f"the cluster at {url}", ports, options.state_dir))
        children = _children(settings, options, held, listener.fileno(), url)
        others = options.lan or settings.cluster.min_nodes > len(options.workers) or not options.workers  # are awaited
        run = ParentRun(
            supervisor=Supervisor(
                tuple(plan for plan, _ in children),
                random.Random(),
                settings.server.drain_timeout,
                remote_workers=others,
            ),
            commands={plan.name: command for plan, command in children},
            zmq=held.near(settings.zmq),
            name="up",
            join_token=settings.cluster.join_token,
            say_ready=lambda: say_ready(url),
            url=url,
            drain_timeout=settings.server.drain_timeout,
        )
        return run.until_over()


ChildStart = tuple[ChildPlan, ChildCommand]


def _children(settings: Settings, options: UpOptions, held: ClusterPorts, http_fd: int, url: str) -> list[ChildStart]:
    """In the order in which they are started."""
    zmq, env = held.near(settings.zmq), secrets_env(settings)

    def child(role: ChildRole, spec: ChildSpec, name: str, *more: str, pass_fds: tuple[int, ...] = ()) -> ChildStart:
        argv = python_child(f"_{role}", spec_to_json(spec), *more)
        huge_pages = huge_pages_env(os.environ) if role == "worker" else {}
        plan = ChildPlan(name=NodeId(name), role=role, vital=role != "worker")
        return plan, ChildCommand(argv=tuple(argv), pass_fds=pass_fds, env=env | huge_pages)

    frontend = FrontendSpec(
        node_id="frontend",
        zmq=zmq,
        cluster=settings.cluster,
        model=settings.model,
        engine=settings.engine,
        server=settings.server,
        http_fd=http_fd,
        http_url=url,
    )
    return [
        child("coordinator", coordinator_spec(settings, options, held), "coordinator"),
        *(
            child("worker", _worker_spec(settings, worker, zmq, ends), worker.node_id)
            for worker, ends in zip(options.workers, held.workers, strict=True)
        ),
        child("frontend", frontend, "frontend", *BEEN_READY, pass_fds=(http_fd,)),
    ]


def coordinator_spec(settings: Settings, options: UpOptions, held: ClusterPorts) -> CoordinatorSpec:
    return CoordinatorSpec(
        zmq=held.bound(settings.zmq),
        cluster=settings.cluster,
        model=settings.model,
        engine=settings.engine,
        state_dir=str(options.state_dir),
        local_nodes=tuple(worker.node_id for worker in options.workers),
    )


def _worker_spec(
    settings: Settings, worker: WorkerOptions, zmq: ZmqSettings, ends: tuple[HostPort, HostPort]
) -> WorkerSpec:
    steps, store = ends
    return WorkerSpec(
        node_id=worker.node_id,
        zmq=zmq,
        cluster=settings.cluster,
        model=settings.model,
        pipeline_bind=str(steps),
        store_bind=str(store),
        device=worker.device,
        threads=worker.threads,
        memory_bytes=worker.memory_bytes,
    )
