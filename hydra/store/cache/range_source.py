"""Where the bytes of a described model's files can be had from: the Hub, a peer, the coordinator.

Promises: a source hands out exactly the bytes that were asked for, in order, or says why not. Refuses to know who
wants them, what they mean, and whether they are kept.
"""

from collections.abc import Iterator
from typing import Protocol


class SourceFault(Exception):
    """The world's fault: a cut body, an overloaded or silent server, a peer that went away.

    Whoever reads waits a little and asks again for what is missing, here or at the next source. `retry_after_s` is how
    long the source itself asked to be left alone; None: it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SourceSilent(SourceFault):
    """Nothing came back at all: no such host, no route, nobody who accepts, or who accepts and says nothing."""


class SourceUnfit(SourceFault):
    """This source will not have it, however often it is asked: it holds another version, or not these bytes."""


class RangeIgnored(SourceFault):
    """This server hands out whole files only: ask again for the file from byte 0 to its end."""


class RangeSource(Protocol):
    """One place to read ranges of one model's files from. May be called by several threads at once.

    `read` yields the bytes [offset, offset + length) of `file` in pieces of any size above 0; a consumer that has
    enough closes the iterator, which ends the transfer. Raises SourceFault (tried again, or the next source is asked)
    and RefusalError (nobody needs to try again: access denied, no such model).
    """

    @property
    def name(self) -> str:
        """As people may read it in a message: "hub:org/name@0123abc", "lane:w2"."""

    def read(self, file: str, offset: int, length: int) -> Iterator[bytes]: ...
