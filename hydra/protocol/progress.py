"""How far a load has come, as whoever reads or fetches bytes reports it. Refuses to know who listens."""

from typing import Protocol


class Progress(Protocol):
    """Called by the loader, from its own thread."""

    def __call__(self, bytes_done: int, bytes_total: int) -> None: ...
