"""Where somebody listens: `tcp://HOST:PORT` read strictly, and whether a host can be reached from other machines.

Asks the system only to resolve a name and to tell the way to a host. Opens no port.
"""

import socket
import threading

import attrs

from hydra.complaint import Complaint

RESOLVE_S = 5.0
ANY_HOST = ("*", "0.0.0.0")


@attrs.frozen
class HostPort:
    """One lane's end. Port 0: any."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @classmethod
    def parse(cls, name: str, text: str, *, port_min: int = 0) -> "HostPort":
        """Raises Complaint (exit 2) that speaks of `name`."""
        scheme, separator, rest = text.partition("://")
        if separator and scheme != "tcp":
            cause = f"{scheme} is none of its schemes; an address is tcp://HOST:PORT"
            raise Complaint(f"{name}: {text!r} is no address", cause, "for example tcp://10.0.0.5:5555", 2)
        host, colon, port = (rest if separator else text).rpartition(":")
        if not host or "/" in host or not colon or not (port.isascii() and port.isdigit()):
            cause = "an address is tcp://HOST:PORT"
            raise Complaint(f"{name}: {text!r} is no address", cause, "for example tcp://10.0.0.5:5555", 2)
        if not port_min <= int(port) <= 65535:
            cause = f"ports are {port_min} to 65535"
            raise Complaint(f"{name}: {text!r} is no address", cause, "for example tcp://10.0.0.5:5555", 2)
        return cls(host, int(port))


def resolve(name: str, host: str) -> str:
    """The IPv4 address of `host`. Raises Complaint (exit 5) when there is none, or nobody says so in time."""
    found: list[str | OSError] = []

    def ask() -> None:
        try:
            found.append(str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]))
        except (OSError, UnicodeError) as error:
            found.append(error if isinstance(error, OSError) else OSError(str(error)))

    asking = threading.Thread(target=ask, daemon=True)  # a resolver that hangs cannot be called back
    asking.start()
    asking.join(RESOLVE_S)
    answer = found[0] if found else TimeoutError(f"no answer within {RESOLVE_S:.0f} s")
    if isinstance(answer, str):
        return answer
    cause = getattr(answer, "strerror", None) or str(answer)
    fix = "check the name, or give the address in numbers"
    raise Complaint(f"{name}: the host {host!r} cannot be resolved", cause, fix, 5) from answer


def local_address_towards(name: str, host_ip: str, port: int) -> str:
    """This machine's address on the way to a host. Raises Complaint (exit 5) when there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # which sends nothing
        try:
            probe.connect((host_ip, port))
        except OSError as error:
            fix = "check the address and this machine's network"
            raise Complaint(f"{name}: there is no way to {host_ip}", error.strerror or str(error), fix, 5) from error
        return str(probe.getsockname()[0])
