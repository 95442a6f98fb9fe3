"""`up` and `worker`: from settings to a parent with its children. Opens what must be open before anybody starts.

Ports are settled here, so that a taken one fails early and a restarted coordinator comes back at the same address.
"""

import fcntl
import os
import random
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import psutil
import trio

from hydra.actors.parent import ChildCommand, Parent, python_child
from hydra.actors.supervisor import ChildPlan, Supervisor
from hydra.child_spec import CoordinatorSpec, FrontendSpec, WorkerSpec, to_json
from hydra.complaint import Complaint
from hydra.held_port import HeldPort
from hydra.huge_pages import huge_pages_env
from hydra.protocol.ids import NodeId
from hydra.settings import Settings
from hydra.state_dir import begin_anew

CPU_MEMORY_SHARE = 0.8  # of the RAM that is free at start, over all CPU workers of this machine
GIGABYTE = 1_000_000_000
BEEN_READY = ("--been-ready", "{been_ready}")  # which the parent fills in for every life of a child


@attrs.frozen(kw_only=True)
class WorkerWish:
    """One local worker: its device, its share of the memory, its threads."""

    node_id: str
    device: str
    memory_bytes: int
    threads: int


def local_workers(count: int | None, device: str) -> tuple[WorkerWish, ...]:
    """The default is one per GPU, else two on the CPU. Devices that repeat share their memory."""
    devices = _devices(device)
    n_workers = count if count is not None else (len(devices) if devices != ["cpu"] else 2)
    chosen = [devices[i % len(devices)] for i in range(n_workers)]
    cores = os.cpu_count() or 1
    wishes: list[WorkerWish] = []
    for index, name in enumerate(chosen):
        sharers = chosen.count(name)
        memory_bytes, threads = 0, 0
        if name == "cpu":
            memory_bytes = int(psutil.virtual_memory().available * CPU_MEMORY_SHARE / sharers)
            threads = max(1, cores // sharers)
        elif sharers > 1:
            memory_bytes = _gpu_memory(name) // sharers
        wishes.append(WorkerWish(node_id=f"w{index}", device=name, memory_bytes=memory_bytes, threads=threads))
    return tuple(wishes)


def _devices(device: str) -> list[str]:
    if device != "auto":
        return [name.strip() for name in device.split(",") if name.strip()] or ["cpu"]
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=20).stdout
        gpus = [line for line in listed.splitlines() if line.startswith("GPU ")]
        if gpus:
            return [f"cuda:{index}" for index in range(len(gpus))]
    return ["cpu"]


def _gpu_memory(device: str) -> int:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", device.partition(":")[2]]
    told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    return int(told) * (1 << 20) if told.isdigit() else 0


def open_http(addr: str) -> socket.socket:
    """The listening socket that all lives of the frontend share. Raises Complaint (exit 4) when the port is taken."""
    host, _, port = addr.rpartition(":")
    if not host or not port.isdigit():
        raise Complaint(f"{addr!r} is no address", "an address is HOST:PORT", "for example 127.0.0.1:8080", 2)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), int(port)))
    except OSError as why:
        listener.close()
        fix = f"stop what listens there, or choose another with --http {host}:{int(port) + 1}"
        raise Complaint(f"cannot listen on {addr}", str(why), fix, 4) from why
    listener.listen(1024)
    return listener


def settle_addr(name: str, addr: str, setting: str, *, host: str | None = None) -> tuple[str, HeldPort]:
    """A concrete `tcp://host:port`, which is ours as long as the second lives.

    Raises Complaint when `addr` is none (exit 2) or its port is taken (exit 4); `setting` is where another is chosen.
    """
    scheme, _, rest = addr.partition("://")
    bind_host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not bind_host or not port.isdigit():
        raise Complaint(f"{name} = {addr!r} is no address", "an address is tcp://HOST:PORT", "mend it", 2)
    bind_host = host or bind_host
    try:
        held = HeldPort.take("0.0.0.0" if bind_host == "*" else bind_host, int(port))
    except OSError as why:
        fix = f"stop what listens there, or choose another with {setting} (port 0: any)"
        raise Complaint(f"{name}: cannot listen on {addr}", str(why), fix, 4) from why
    return f"tcp://{bind_host}:{held.port}", held


def require_token(key: str, addr: str, join_token: str) -> None:
    """Off loopback a join token must be set. Raises Complaint (exit 6)."""
    host = addr.partition("://")[2].rpartition(":")[0].strip("[]")
    if not join_token and host not in ("localhost", "::1") and not host.startswith("127."):
        raise Complaint(
            f"{key}: {addr} can be reached from other machines, and no join token is set",
            "off loopback every process must show one",
            "set HYDRA_CLUSTER_JOIN_TOKEN (or [cluster] join_token) here and on every worker",
            6,
        )


def lock_state(directory: Path) -> int:
    """Holds the directory until the process ends. Raises Complaint (exit 4) when another cluster does."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as why:
        raise Complaint(f"{directory} cannot be used", str(why), "choose another with --state-dir", 4) from why
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as why:
        os.close(descriptor)
        fix = "stop that cluster, or choose another with --state-dir"
        raise Complaint(f"{directory} is in use", "another cluster keeps its state there", fix, 4) from why
    return descriptor


@attrs.frozen(kw_only=True)
class UpWish:
    """What `up` was asked for, beside the settings."""

    model_path: str
    workers: tuple[WorkerWish, ...]
    state_dir: Path
    lan: bool


def coordinator_spec(settings: Settings, wish: UpWish, addrs: dict[str, str]) -> CoordinatorSpec:
    cluster, engine = settings.cluster, settings.engine
    return CoordinatorSpec(
        router_addr=addrs["router_addr"],
        broadcast_addr=addrs["broadcast_addr"],
        results_addr=addrs["results_addr"],
        store_addr=addrs["store_addr"],
        state_dir=str(wish.state_dir),
        cache_dir=str(settings.model.cache_path()),
        max_cache_bytes=settings.model.max_cache_bytes(),
        model_path=wish.model_path,
        model_id=settings.model.id,
        dtype=settings.model.dtype,
        expected_workers=max(len(wish.workers), cluster.min_nodes),
        patience_s=60.0 if wish.workers or cluster.min_nodes else 2.0,
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
        recovery_deadline_s=engine.recovery_deadline,
        high_water_mark=settings.zmq.high_water_mark,
    )


def secrets_env(settings: Settings) -> dict[str, str]:
    """What children must know and no command line or log may show."""
    found = {"HYDRA_CLUSTER_JOIN_TOKEN": settings.cluster.join_token, "HF_TOKEN": settings.model.hf_token}
    return {name: secret for name, secret in found.items() if secret}


def run_up(settings: Settings, wish: UpWish, say_ready: Callable[[str], None]) -> int:
    """The whole life of `up`. Returns the exit code."""
    lock_state(wish.state_dir)
    begin_anew(wish.state_dir)
    listener = open_http(settings.server.http_addr)
    host = "*" if wish.lan else None
    settled = {  # and held: as long as this function runs
        key: settle_addr(f"[zmq] {key}", getattr(settings.zmq, key), f"HYDRA_ZMQ_{key.upper()}", host=host)
        for key in ("router_addr", "broadcast_addr", "results_addr", "store_addr")
    }
    addrs = {key: addr for key, (addr, _) in settled.items()}
    for key, addr in addrs.items():
        require_token(key, addr, settings.cluster.join_token)
    near = {key: addr.replace("//*:", "//127.0.0.1:") for key, addr in addrs.items()}
    any_port = "tcp://*:0" if wish.lan else "tcp://127.0.0.1:0"  # of the local workers
    url = f"http://{settings.server.http_addr.rpartition(':')[0]}:{listener.getsockname()[1]}"
    plans = [ChildPlan(name=NodeId("coordinator"), role="coordinator", vital=True)]
    specs: dict[str, tuple[str, str, tuple[int, ...]]] = {
        "coordinator": ("_coordinator", to_json(coordinator_spec(settings, wish, addrs)), ()),
    }
    for worker in wish.workers:
        plans.append(ChildPlan(name=NodeId(worker.node_id), role="worker", vital=False))
        spec = WorkerSpec(
            node_id=worker.node_id,
            router_addr=near["router_addr"],
            broadcast_addr=near["broadcast_addr"],
            cache_dir=str(settings.model.cache_path()),
            max_cache_bytes=settings.model.max_cache_bytes(),
            pipeline_bind=any_port,
            store_bind=any_port,
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
        router_addr=near["router_addr"],
        broadcast_addr=near["broadcast_addr"],
        http_fd=listener.fileno(),
        http_url=url,
        drain_timeout_s=settings.server.drain_timeout,
        max_body_bytes=settings.server.max_body_bytes,
        allowed_hosts=settings.server.allowed_hosts,
        allowed_origins=settings.server.allowed_origins,
        while_loading=settings.server.while_loading,
        max_replays=settings.engine.max_replays,
        high_water_mark=settings.zmq.high_water_mark,
        chat_template=settings.model.chat_template and str(Path(settings.model.chat_template).expanduser().absolute()),
        model_path=wish.model_path,
    )
    specs["frontend"] = ("_frontend", to_json(frontend), (listener.fileno(),))
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
    supervisor = Supervisor(tuple(plans), random.Random(), settings.server.drain_timeout)
    return _run_parent(supervisor, commands, near, "up", settings.cluster.join_token, lambda: say_ready(url))


def worker_child(spec_json: str) -> Sequence[str]:
    return python_child("_worker", spec_json)


def run_worker_parent(
    spec: WorkerSpec, settings: Settings, child: Callable[[str], Sequence[str]] = worker_child
) -> int:
    """The whole life of `worker`: the same program with one child, whose command line `child` makes of its spec.

    Returns the exit code.
    """
    supervisor = Supervisor((ChildPlan(name=NodeId(spec.node_id), role="worker", vital=True),), random.Random())
    env = secrets_env(settings) | huge_pages_env(os.environ)
    command = ChildCommand(argv=tuple(child(to_json(spec))), env=env)
    addrs = {"router_addr": spec.router_addr, "broadcast_addr": spec.broadcast_addr}
    commands = {NodeId(spec.node_id): command}
    name = f"parent-{spec.node_id}"
    return _run_parent(supervisor, commands, addrs, name, settings.cluster.join_token, lambda: None)


def _run_parent(
    supervisor: Supervisor,
    commands: dict[NodeId, ChildCommand],
    addrs: dict[str, str],
    name: str,
    join_token: str,
    say_ready: Callable[[], None],
) -> int:
    from hydra.protocol.zmq_wire import ZmqWires
    from hydra.roles import peer_id

    node_id = f"{name}-{socket.gethostname()}-{secrets.token_hex(2)}"

    async def main() -> int:
        wires = ZmqWires()
        parent = Parent(
            supervisor=supervisor,
            commands=commands,
            spoke=wires.spoke(peer_id(node_id), addrs["router_addr"], addrs["broadcast_addr"]),
            node_id=NodeId(node_id),
            host=socket.gethostname(),
            auth=join_token,
            say_ready=say_ready,
        )
        try:
            await parent.run()
        finally:
            wires.close()
        return parent.exit_code

    return trio.run(main)
