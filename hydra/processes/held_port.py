"""A TCP port that stays ours from the moment it was found free until a child of ours listens there, and between that
child's lives: nobody else is given it meanwhile. Refuses to know who listens, and for what.
"""

import os
import socket
import sys
import weakref

import attrs

HOLDS = sys.platform == "linux"  # where a bound socket that does not listen is in no listener's way


@attrs.frozen(kw_only=True)
class HeldPort:
    """Held while this object lives (except where the system has no way to: then it was free when it was asked for)."""

    host: str
    port: int

    @classmethod
    def take(cls, host: str, port: int = 0) -> "HeldPort":
        """`port` 0: any that is free. Raises OSError when another listens there.

        Linux gives a port with a socket bound to it neither to a `bind` to port 0 nor to an outgoing connection, but
        lets whoever sets SO_REUSEADDR, as ZeroMQ and Trio do, listen beside one that does not.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            taken = cls(host=host, port=int(probe.getsockname()[1]))
            if HOLDS:
                weakref.finalize(taken, os.close, probe.detach())
            return taken
