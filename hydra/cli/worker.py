"""The command that adds this machine's device to a cluster, and where such a worker listens."""

import sys
from pathlib import Path

import attrs
import click

from hydra.complaint import Complaint
from hydra.log.set_up import set_up_logging
from hydra.processes.child_spec import WorkerSpec
from hydra.processes.host_port import ANY_HOST, HostPort, local_address_towards, resolve
from hydra.protocol.loopback import LOOPBACK, is_loopback
from hydra.protocol.units import GIGABYTE
from hydra.settings import CHOICES, load_settings, with_paths

STEPS_PORT, STORE_PORT = 6000, 6001


@click.command("worker")
@click.option("--node-id", required=True, help="This worker's name; it survives restarts.")
@click.option("--coordinator", required=True, help="tcp://HOST:5555 of the cluster to join.")
@click.option("--broadcast", help="tcp://HOST:5557 (default: the coordinator's host, port + 2).")
@click.option("--device", default="auto", show_default=True, help="cpu, mps or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(CHOICES["model", "dtype"]),
    default="auto",
    show_default=True,
    help="Restricts what this worker offers.",
)
@click.option("--ports", "ports_text", help="FIRST or FIRST-LAST: where it takes steps, and lends its layers after it.")
@click.option("--pipeline-port", type=click.IntRange(0, 65535), help="Where it takes steps (default 6000; 0: any).")
@click.option("--store-port", type=click.IntRange(0, 65535), help="Where it lends its layers (6001; on loopback any).")
@click.option("--bind", help="Where to listen for other workers (default: this machine's address to the coordinator).")
@click.option("--advertise", default="", help="The host under which others reach this worker (default: as bound).")
@click.option("--memory-gb", type=click.FloatRange(0, 1e6), default=0.0, help="Caps what it offers (default: all).")
@click.option("--threads", type=click.IntRange(0, 4096), default=0, help="Compute threads on the CPU.")
def worker_command(
    node_id: str,
    coordinator: str,
    broadcast: str | None,
    device: str,
    dtype: str,
    ports_text: str | None,
    pipeline_port: int | None,
    store_port: int | None,
    bind: str | None,
    advertise: str,
    memory_gb: float,
    threads: int,
) -> None:
    """Add this machine's device to a cluster."""
    from hydra.processes.listening import require_token, settle_port
    from hydra.processes.local_workers import local_workers
    from hydra.processes.machine_facts import MachineFacts
    from hydra.processes.port_holders import PortHolders
    from hydra.processes.preflight import check_writable

    set_up_logging("parent", node_id)
    settings = with_paths(load_settings(None, {}))
    cache_dir = Path(settings.model.cache_dir)
    router = HostPort.parse("--coordinator", coordinator, port_min=1)
    news = HostPort.parse("--broadcast", broadcast or f"tcp://{router.host}:{min(router.port + 2, 65535)}", port_min=1)
    options = local_workers(1, device, MachineFacts.look())[0]
    check_writable(cache_dir, "HYDRA_MODEL_CACHE_DIR")
    place = find_place(router, bind, advertise)
    steps, store = ends(place.bind, ports_text, pipeline_port, store_port)
    for name, address in {"--bind": steps, "--coordinator": HostPort(place.coordinator_ip, router.port)}.items():
        require_token(name, address, settings.cluster.join_token)
    holders = PortHolders.of(cache_dir)
    option = "--ports" if ports_text else "--pipeline-port"
    settled = {}  # and held until this function returns; port 0: each life of the worker takes its own
    for end, setting in ((steps, option), (store, "--ports" if ports_text else "--store-port")):
        if end.port:
            settled[end] = settle_port(setting, end, setting, holders)
    from hydra.processes.worker_parent import run_worker_parent

    spec = WorkerSpec(
        node_id=node_id,
        zmq=attrs.evolve(settings.zmq, router_addr=str(router), broadcast_addr=str(news)),
        cluster=settings.cluster,
        model=attrs.evolve(settings.model, dtype=dtype),
        pipeline_bind=str(steps),
        store_bind=str(store),
        advertise_host=place.advertise,
        device=options.device,
        threads=threads or options.threads,
        memory_bytes=int(memory_gb * GIGABYTE) or options.memory_bytes,
    )
    with holders.card(f"the worker {node_id}", [end.port for end in settled]):
        exit_code = run_worker_parent(spec, settings)
    sys.exit(exit_code)


@attrs.frozen(kw_only=True)
class WorkerPlace:
    """Where a worker listens, and the host that it tells others."""

    coordinator_ip: str
    bind: str
    advertise: str


def find_place(coordinator: HostPort, bind: str | None, advertise: str) -> WorkerPlace:
    """By default the address that the coordinator sees of us: what others dial must be more than a promise.

    Raises Complaint: exit 5 when the coordinator's host cannot be found, exit 2 when it lies on another machine and
    nobody there could reach what is asked for.
    """
    host_ip = resolve("--coordinator", coordinator.host)
    if is_loopback(host_ip):
        bound = bind or LOOPBACK
        shown = LOOPBACK if bound in ANY_HOST else bound
        return WorkerPlace(coordinator_ip=host_ip, bind=bound, advertise=advertise or shown)
    own_ip = local_address_towards("--coordinator", host_ip, coordinator.port)
    cause = f"the coordinator at {coordinator.host} and its other workers could not reach this one"
    if advertise and is_loopback(advertise):
        raise Complaint(f"--advertise {advertise} is loopback", cause, f"leave it out, or --advertise {own_ip}", 2)
    if bind is not None and is_loopback(bind) and not advertise:
        raise Complaint(f"--bind {bind} is loopback", cause, f"leave it out, or --bind {own_ip}", 2)
    bound = bind or own_ip
    shown = own_ip if bound in ANY_HOST else bound
    return WorkerPlace(coordinator_ip=host_ip, bind=bound, advertise=advertise or shown)


def ends(
    bind: str, ports_text: str | None, pipeline_port: int | None, store_port: int | None
) -> tuple[HostPort, HostPort]:
    """Where it takes steps and where it lends its layers. Fixed off loopback, so that a firewall can know them."""
    from hydra.processes.port_range import PortRange

    if ports_text is not None:
        if pipeline_port is not None or store_port is not None:
            cause = "--ports gives both ports"
            raise Complaint("--ports beside --pipeline-port or --store-port", cause, "leave one of them out", 2)
        first, second = PortRange.parse(ports_text).take(2, "a worker")
        return HostPort(bind, first), HostPort(bind, second)
    first = STEPS_PORT if pipeline_port is None else pipeline_port
    second = (0 if is_loopback(bind) else STORE_PORT) if store_port is None else store_port
    if first and first == second:
        raise Complaint(f"port {first} is taken twice", "--pipeline-port and --store-port are one", "choose another", 2)
    return HostPort(bind, first), HostPort(bind, second)
