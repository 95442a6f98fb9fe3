"""Where a lane of another process is reached, and by what key it would be known: one thing, wherever it is named.

Knows no socket; what an address may look like is in `limits`.
"""

import attrs


@attrs.frozen
class Endpoint:
    """`addr` is tcp://HOST:PORT. The lanes are not encrypted yet, so that `public_key` is empty."""

    addr: str
    public_key: str = ""

    def __str__(self) -> str:
        return self.addr
