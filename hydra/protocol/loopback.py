"""Whether an address is one that every machine has for itself. Resolves no name."""

LOOPBACK = "127.0.0.1"


def host_of(addr: str) -> str:
    """Of `tcp://HOST:PORT`, without the brackets of an IPv6 address."""
    return addr.partition("://")[2].rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only the same machine reaches it."""
    return host.strip("[]") in ("localhost", "::1") or host.startswith("127.")
