"""Who may come in: a web page cannot operate the cluster of whoever looks at it.

A page that any site serves can send requests to this machine, from inside. It cannot help to name itself in Origin, to
ask for the server by a name of its own making (DNS rebinding), or to send a body as something simple enough that no
browser asks first. So: a Host that is known, an Origin that fits, and JSON. Programs send no Origin. It knows no route
beyond those that probes ask.
"""

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import attrs
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import UnsupportedMediaType

from hydra.protocol.refusal import refuse

PROBES = ("/health", "/ready", "/metrics")  # whose answers hold nothing that is worth a trick
READING = ("GET", "HEAD", "OPTIONS")
ANY = "*"
# Names that nobody else can make point here: this machine's own, and those that container programs give it.
NAMES = ("localhost", "host.docker.internal", "gateway.docker.internal", "host.containers.internal")
EXPOSED = "x-request-id, x-hydra-ignored, retry-after"
SHOWN_MAX = 100
PREFLIGHT_S = 600


class NotJson(UnsupportedMediaType):
    """A body of another type, or of none."""


def own_names() -> tuple[str, ...]:
    """What this machine calls itself, as a whole, in short, and as neighbours may find it."""
    whole = socket.gethostname().lower()
    short = whole.partition(".")[0]
    return (whole, short, f"{short}.local")


@attrs.frozen
class Door:
    """Of one server. `hosts` in lower case; one that begins with a dot stands for all names that end so."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    own_names: tuple[str, ...] = attrs.field(factory=own_names)

    @classmethod
    def of(cls, listening: str, hosts: Sequence[str], origins: Sequence[str]) -> "Door":
        """`listening`: the host of the address that the server was told to listen on."""
        lower = tuple(host.lower() for host in (listening, *hosts) if host)
        return cls(lower, tuple(origin.lower().rstrip("/") for origin in origins))

    def knows(self, host: str) -> bool:
        """An address cannot be made to point elsewhere; a name is known or it is not."""
        name = host_name(host)
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        if not name or ANY in self.hosts or name in (*NAMES, *self.own_names, *self.hosts):
            return True
        return name.endswith((".localhost", *(end for end in self.hosts if end.startswith("."))))

    def lists(self, origin: str) -> bool:
        return ANY in self.origins or origin.lower() in self.origins

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises RefusalError access_denied."""
        host, origin = headers.get("Host", ""), headers.get("Origin", "")
        if path not in PROBES and not self.knows(host):
            message = f"the host {host[:SHOWN_MAX]!r} is none that this server is known by"
            remedy = "if it is one of its names, add it to [server] allowed_hosts (HYDRA_SERVER_ALLOWED_HOSTS)"
            raise refuse("access_denied", f"{message}; {remedy}")
        if origin and method not in READING and not self.lists(origin) and not _same(origin, host):
            message = f"a web page of {origin[:SHOWN_MAX]!r} may not do this"
            remedy = "if you trust it, add it to [server] allowed_origins (HYDRA_SERVER_ALLOWED_ORIGINS)"
            raise refuse("access_denied", f"{message}; {remedy}")


def host_name(host: str) -> str:
    """Without the port, the brackets and the last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _same(origin: str, host: str) -> bool:
    """Whether the page was served by the very host that it asks. A proxy in front may have added the TLS."""
    parts = urlsplit(origin)
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(default) != ""


def _check_type(headers: Headers) -> None:
    """Raises NotJson. No body needs no type."""
    given = headers.get("Content-Type")
    kind = (given or "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if given is None and headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in headers:
        return
    sent = f"not {given[:SHOWN_MAX]!r}" if given else "and not no type at all"
    raise NotJson(
        "the request body must be sent as JSON, with the header Content-Type: application/json "
        f"(curl: -H 'Content-Type: application/json'), {sent}"
    )


def add_door(app: QuartTrio, door: Door) -> None:
    """In front of all routes. What no route knows is told so, whatever its body is."""

    @app.before_request
    async def look() -> Response | None:
        headers = request.headers
        door.check(request.method, request.path, headers)
        asked = headers.get("Access-Control-Request-Method")
        if request.method == "OPTIONS" and asked and door.lists(headers.get("Origin", "")):
            return _preflight()
        if request.method not in (*READING, "DELETE") and request.routing_exception is None:
            _check_type(headers)
        return None

    @app.after_request
    async def allow(response: Response) -> Response:
        origin = request.headers.get("Origin", "")
        if door.origins:
            response.headers.add("Vary", "Origin")
        if origin and door.lists(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response


def _preflight() -> Response:
    """What a browser asks before it lets a page send JSON."""
    response = Response(b"", status=204)
    response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
    response.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
    response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response
