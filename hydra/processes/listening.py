"""What a parent must hold before it starts anybody: its ports and its state directory, or a Complaint naming who does.

Ports are settled here, so that a taken one fails early and a restarted coordinator comes back at the same address.
"""

import errno
import fcntl
import os
import socket
from pathlib import Path

from hydra.complaint import Complaint
from hydra.processes.held_port import HeldPort
from hydra.processes.host_port import ANY_HOST, HostPort
from hydra.processes.port_holders import PortHolders
from hydra.protocol.loopback import is_loopback

BACKLOG = 1024
SECOND = "or --ports 5655-5670 for all that a second cluster needs"
NEXT_PORTS = 32  # that are tried where the usual one is taken and another will do


def parse_http(addr: str) -> tuple[str, int]:
    """Raises Complaint (exit 2)."""
    host, _, port = addr.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        cause = "an address is HOST:PORT, and ports end at 65535"
        raise Complaint(f"{addr!r} is no address", cause, "for example 127.0.0.1:8080", 2)
    return host, int(port)


def open_http(addr: str, holders: PortHolders, *, or_next: bool = False) -> socket.socket:
    """The listening socket that all lives of the frontend share; `or_next`: on the next free port if this is taken.

    Raises Complaint: exit 2 when `addr` is none, exit 4 when nobody can listen there.
    """
    host, first = parse_http(addr)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, min(first + NEXT_PORTS, 65535) + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if or_next and error.errno == errno.EADDRINUSE and port < first + NEXT_PORTS:
                continue
            raise _cannot_listen(
                addr, f"--http {host}:{first + 1} ({SECOND})", HostPort(host, first), error, holders
            ) from error
        return listener
    raise AssertionError("the last port was tried or complained of")


def settle_port(name: str, address: HostPort, setting: str, holders: PortHolders) -> tuple[HostPort, HeldPort]:
    """A concrete address, which is ours as long as the second lives; `setting` is where another is chosen.

    Raises Complaint (exit 4) when its port is taken or the host is none of ours.
    """
    try:
        held = HeldPort.take("0.0.0.0" if address.host in ANY_HOST else address.host, address.port)
    except OSError as error:
        raise _cannot_listen(f"{address}, {name}", f"another with {setting}", address, error, holders) from error
    return HostPort(address.host, held.port), held


def _cannot_listen(what: str, other: str, address: HostPort, why: OSError, holders: PortHolders) -> Complaint:
    if why.errno != errno.EADDRINUSE:
        fix = f"give an address of this machine and a port that you may use, with {other}"
        return Complaint(f"cannot listen on {what}", str(why), fix, 4)
    holder = holders.of_port(address.port)
    if holder is None:
        return Complaint(f"cannot listen on {what}", str(why), f"stop what listens there, or choose {other}", 4)
    return Complaint(f"cannot listen on {what}", f"held by {holder}", f"stop it, or choose {other}", 4)


def require_token(key: str, address: HostPort, join_token: str) -> None:
    """Off loopback a join token must be set. Raises Complaint (exit 6)."""
    if not join_token and not is_loopback(address.host):
        raise Complaint(
            f"{key}: {address} can be reached from other machines, and no join token is set",
            "off loopback every process must show one",
            "set HYDRA_CLUSTER_JOIN_TOKEN (or [cluster] join_token) here and on every worker",
            6,
        )


def lock_state(directory: Path, holders: PortHolders) -> int:
    """Holds the directory until the process ends. Raises Complaint (exit 4) when another cluster does."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Complaint(f"{directory} cannot be used", str(error), "choose another with --state-dir", 4) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        holder = holders.of_state(directory)
        cause = f"{holder or 'another cluster'} keeps its state there"
        fix = "stop that cluster, or choose another with --state-dir"
        raise Complaint(f"{directory} is in use", cause, fix, 4) from error
    return descriptor
