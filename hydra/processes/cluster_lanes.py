"""Where the lanes of a cluster listen, decided before any port is opened: hosts, and ports that a firewall can know.

    FIRST     command lane        5555        FIRST + 3   results     5558
    FIRST + 1 metrics (reserved)  5556        FIRST + 4   store       5559
    FIRST + 2 broadcast           5557        FIRST + 5   steps to the first local worker, + 6 its store, and so on

Off loopback all of them are fixed unless somebody chose otherwise; on loopback only the first three are.
"""

from collections.abc import Mapping

import attrs

from hydra.complaint import Complaint
from hydra.processes.host_port import ANY_HOST, HostPort
from hydra.processes.port_range import PortRange
from hydra.protocol.loopback import LOOPBACK, is_loopback
from hydra.protocol.settings.zmq import ZmqSettings

PLACES = {"router_addr": 0, "broadcast_addr": 2, "results_addr": 3, "store_addr": 4}  # after the first port
WORKERS_FROM = 5
PORTS_PER_WORKER = 2


@attrs.frozen(kw_only=True)
class ClusterLanes:
    """`lanes` by their keys in section [zmq]; `workers`: where each local worker takes steps and lends files."""

    lanes: Mapping[str, HostPort]
    workers: tuple[tuple[HostPort, HostPort], ...]


def near(address: HostPort) -> HostPort:
    """An address of this machine as its own processes reach it."""
    return attrs.evolve(address, host=LOOPBACK) if address.host in ANY_HOST else address


def plan_lanes(zmq: ZmqSettings, n_workers: int, *, lan: bool, ports: PortRange | None) -> ClusterLanes:
    """Raises Complaint (exit 2): an address that is none, a range that is too small, two lanes at one port, one lane
    on loopback while the others are not.
    """
    given = {key: HostPort.parse(f"[zmq] {key}", getattr(zmq, key)) for key in PLACES}
    chosen = {key for key in PLACES if getattr(zmq, key) != getattr(ZmqSettings(), key)}
    host = _far_host(given, chosen, lan=lan)
    hosts = {key: host if host and (lan or key not in chosen) else address.host for key, address in given.items()}
    n_ports, workers_host = WORKERS_FROM + PORTS_PER_WORKER * n_workers, host or LOOPBACK
    first = given["router_addr"].port
    if ports is not None:
        row = ports.take(n_ports, f"a cluster with {n_workers} local worker{'' if n_workers == 1 else 's'}")
        wanted = {key: row[place] for key, place in PLACES.items()}
    elif host is None or first == 0:  # on loopback, or somebody wants any ports
        row = (0,) * n_ports
        wanted = {key: address.port for key, address in given.items()}
    else:
        row = PortRange(first).take(n_ports, "a cluster off loopback")
        wanted = {key: given[key].port if key in chosen else row[place] for key, place in PLACES.items()}
    lanes = {key: HostPort(hosts[key], wanted[key]) for key in PLACES}
    return _checked(lanes, _workers(workers_host, row[WORKERS_FROM:]))


def _far_host(given: Mapping[str, HostPort], chosen: set[str], *, lan: bool) -> str | None:
    """The host under which lanes listen that nobody chose one for; None where the cluster is this machine's alone."""
    if lan:
        return "*"
    far = [key for key, address in given.items() if not is_loopback(address.host)]
    if not far:
        return None
    for key in sorted(chosen - set(far)):
        cause = f"[zmq] {far[0]} can be reached from other machines, and this lane could not"
        fix = f"give it the host {given[far[0]].host}, or leave it out"
        raise Complaint(f"[zmq] {key} = {str(given[key])!r} is on loopback", cause, fix, 2)
    return given[far[0]].host


def _workers(host: str, ports: tuple[int, ...]) -> tuple[tuple[HostPort, HostPort], ...]:
    pairs = zip(ports[::PORTS_PER_WORKER], ports[1::PORTS_PER_WORKER], strict=True)
    return tuple((HostPort(host, steps), HostPort(host, store)) for steps, store in pairs)


def _checked(lanes: dict[str, HostPort], workers: tuple[tuple[HostPort, HostPort], ...]) -> ClusterLanes:
    at: dict[int, str] = {}
    ends = [*((f"[zmq] {key}", address) for key, address in lanes.items())]
    ends += [(f"worker w{number}", address) for number, pair in enumerate(workers) for address in pair]
    for name, address in ends:
        if address.port and address.port in at:
            cause = f"{at[address.port]} is to listen there as well"
            fix = "give each lane a port of its own, or all of them a row with --ports"
            raise Complaint(f"{name}: port {address.port} is taken twice", cause, fix, 2)
        at[address.port] = name
    return ClusterLanes(lanes=lanes, workers=workers)
