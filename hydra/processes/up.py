"""`up`: from settings to a parent with its children. Opens what must be open before anybody starts."""

import os
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs

from hydra.actors.families.parent import ChildCommand, python_child
from hydra.actors.families.supervisor import ChildPlan, Supervisor
from hydra.processes.address import Address
from hydra.processes.child_spec import CoordinatorSpec, FrontendSpec, WorkerSpec, secrets_env, to_json
from hydra.processes.cluster_lanes import near, plan_lanes
from hydra.processes.held_port import HeldPort
from hydra.processes.huge_pages import huge_pages_env
from hydra.processes.listening import SECOND, lock_state, open_http, require_token, settle
from hydra.processes.local_workers import WorkerOptions
from hydra.processes.parent_run import ParentRun
from hydra.processes.port_holders import PortHolders
from hydra.processes.port_range import PortRange
from hydra.processes.state_dir import begin_anew
from hydra.protocol.ids import NodeId
from hydra.settings import Settings

GIGABYTE = 1_000_000_000
BEEN_READY = ("--been-ready", "{been_ready}")  # which the parent fills in for every life of a child


@attrs.frozen(kw_only=True)
class UpOptions:
    """What `up` was asked for, beside the settings."""

    model_path: str
    workers: tuple[WorkerOptions, ...]
    state_dir: Path
    lan: bool
    ports: PortRange | None = None
    any_http: bool = False  # where the usual port of the API is taken, the next free one will do


def coordinator_spec(settings: Settings, desired: UpOptions, addrs: Mapping[str, str]) -> CoordinatorSpec:
    cluster, engine = settings.cluster, settings.engine
    return CoordinatorSpec(
        router_addr=addrs["router_addr"],
        broadcast_addr=addrs["broadcast_addr"],
        results_addr=addrs["results_addr"],
        store_addr=addrs["store_addr"],
        state_dir=str(desired.state_dir),
        cache_dir=str(settings.model.cache_path()),
        max_cache_bytes=settings.model.max_cache_bytes(),
        model_path=desired.model_path,
        model_id=settings.model.id,
        dtype=settings.model.dtype,
        local_nodes=tuple(worker.node_id for worker in desired.workers),
        expected_workers=max(len(desired.workers), cluster.min_nodes),
        patience_s=60.0 if desired.workers or cluster.min_nodes else 2.0,
        heartbeat_s=cluster.heartbeat_interval,
        beats_missed_max=cluster.unhealthy_threshold,
        reserve_bytes=int(cluster.reserved_vram_gb * GIGABYTE),
        kv_fraction=engine.kv_memory_fraction,
        max_model_len=settings.model.max_model_len,
        block_size=engine.block_size,
        batch_tokens=engine.max_batch_tokens,
        running_max=engine.max_running,
        waiting_max=engine.max_waiting,
        prefix_cache=engine.prefix_cache,
        share_prefixes="key" if engine.share_prefixes == "key" else "all",
        recovery_deadline_s=engine.recovery_deadline,
        high_water_mark=settings.zmq.high_water_mark,
    )


@attrs.define(eq=False)
class Held:
    """Where the cluster listens, as long as this object lives."""

    lanes: Mapping[str, Address]
    workers: tuple[tuple[Address, Address], ...]  # where each takes steps and lends files
    ports: list[HeldPort] = attrs.field(factory=list)

    @classmethod
    def take(cls, settings: Settings, desired: UpOptions, holders: PortHolders) -> "Held":
        """Raises Complaint."""
        planned = plan_lanes(settings.zmq, len(desired.workers), lan=desired.lan, ports=desired.ports)
        made = cls(lanes={}, workers=())

        def hold(name: str, address: Address, setting: str) -> Address:
            require_token(name, address, settings.cluster.join_token)
            settled, port = settle(name, address, setting, holders)
            made.ports.append(port)
            return settled

        made.lanes = {
            key: hold(f"[zmq] {key}", address, "--ports" if desired.ports else f"HYDRA_ZMQ_{key.upper()}, {SECOND}")
            for key, address in planned.lanes.items()
        }
        made.workers = tuple(
            (  # port 0: each life of the worker takes its own
                hold(f"steps to {worker.node_id}", steps, "--ports") if steps.port else steps,
                hold(f"the store of {worker.node_id}", store, "--ports") if store.port else store,
            )
            for worker, (steps, store) in zip(desired.workers, planned.workers, strict=True)
        )
        return made

    @property
    def addrs(self) -> dict[str, str]:
        return {key: str(address) for key, address in self.lanes.items()}

    @property
    def near(self) -> dict[str, str]:
        """As processes of this machine reach them."""
        return {key: str(near(address)) for key, address in self.lanes.items()}


def run_up(settings: Settings, desired: UpOptions, say_ready: Callable[[str], None]) -> int:
    """The whole life of `up`. Returns the exit code."""
    holders = PortHolders.of(settings.model.cache_path())
    with ExitStack() as stack:
        listener = open_http(settings.server.http_addr, holders, or_next=desired.any_http)
        stack.callback(listener.close)
        held = Held.take(settings, desired, holders)
        lock_state(desired.state_dir, holders)
        begin_anew(desired.state_dir)
        url = f"http://{settings.server.http_addr.rpartition(':')[0]}:{listener.getsockname()[1]}"
        ports = [listener.getsockname()[1], *(port.port for port in held.ports)]
        stack.enter_context(holders.card(f"the cluster at {url}", ports, desired.state_dir))
        plans, specs = _children(settings, desired, held, listener.fileno(), url)
        env = secrets_env(settings)
        more = {"_worker": huge_pages_env(os.environ)}
        commands = {
            NodeId(name): ChildCommand(
                argv=tuple(python_child(role, spec, *(BEEN_READY if role == "_frontend" else ()))),
                pass_fds=fds,
                env=env | more.get(role, {}),
            )
            for name, (role, spec, fds) in specs.items()
        }
        others = (
            desired.lan or settings.cluster.min_nodes > len(desired.workers) or not desired.workers
        )  # that are awaited
        run = ParentRun(
            supervisor=Supervisor(tuple(plans), random.Random(), settings.server.drain_timeout, remote_workers=others),
            commands=commands,
            router_addr=held.near["router_addr"],
            broadcast_addr=held.near["broadcast_addr"],
            name="up",
            join_token=settings.cluster.join_token,
            say_ready=lambda: say_ready(url),
            url=url,
            drain_timeout_s=settings.server.drain_timeout,
        )
        return run.until_over()


ChildWords = tuple[str, str, tuple[int, ...]]  # its command, its spec, the descriptors that it inherits


def _children(
    settings: Settings, desired: UpOptions, held: Held, http_fd: int, url: str
) -> tuple[list[ChildPlan], dict[str, ChildWords]]:
    """In the order in which they are started."""
    router_addr, broadcast_addr = held.near["router_addr"], held.near["broadcast_addr"]
    plans = [ChildPlan(name=NodeId("coordinator"), role="coordinator", vital=True)]
    specs: dict[str, ChildWords] = {
        "coordinator": ("_coordinator", to_json(coordinator_spec(settings, desired, held.addrs)), ()),
    }
    for worker, (steps, store) in zip(desired.workers, held.workers, strict=True):
        plans.append(ChildPlan(name=NodeId(worker.node_id), role="worker", vital=False))
        spec = WorkerSpec(
            node_id=worker.node_id,
            router_addr=router_addr,
            broadcast_addr=broadcast_addr,
            cache_dir=str(settings.model.cache_path()),
            max_cache_bytes=settings.model.max_cache_bytes(),
            pipeline_bind=str(steps),
            store_bind=str(store),
            device=worker.device,
            dtype=settings.model.dtype,
            threads=worker.threads,
            memory_bytes=worker.memory_bytes,
            high_water_mark=settings.zmq.high_water_mark,
        )
        specs[worker.node_id] = ("_worker", to_json(spec), ())
    plans.append(ChildPlan(name=NodeId("frontend"), role="frontend", vital=True))
    frontend = FrontendSpec(
        node_id="frontend",
        router_addr=router_addr,
        broadcast_addr=broadcast_addr,
        http_fd=http_fd,
        http_url=url,
        drain_timeout_s=settings.server.drain_timeout,
        max_body_bytes=settings.server.max_body_bytes,
        allowed_hosts=settings.server.allowed_hosts,
        allowed_origins=settings.server.allowed_origins,
        while_loading=settings.server.while_loading,
        max_replays=settings.engine.max_replays,
        high_water_mark=settings.zmq.high_water_mark,
        chat_template=settings.model.chat_template and str(Path(settings.model.chat_template).expanduser().absolute()),
        model_path=desired.model_path,
    )
    specs["frontend"] = ("_frontend", to_json(frontend), (http_fd,))
    return plans, specs
