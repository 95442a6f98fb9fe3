"""Where the weights of a model can be had, as an order names it: one of three kinds, and never a text to be parsed.

Knows neither disks nor the Hub nor who opens what; a source says which bytes are meant, not that they are there.
"""

from collections.abc import Iterable
from typing import TypeAlias

import attrs

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.refusal import refuse


@attrs.frozen
class Directory:
    """A directory of the machine that reads; used if it is there and the model in it has the order's fingerprint."""

    path: str  # absolute

    def __str__(self) -> str:
        return self.path


@attrs.frozen
class HubCommit:
    """One commit of one repository at the Hub that the reader's own settings name."""

    repo: str  # org/name
    commit: str
    folder: str = ""  # of the repository, in which the weights are; empty: its top

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.commit}" + (f"/{self.folder}" if self.folder else "")


@attrs.frozen
class Peers:
    """Processes of this cluster that may hold the bytes, best first; they are asked on the store lane."""

    endpoints: tuple[Endpoint, ...]

    def __str__(self) -> str:
        return f"lane:{','.join(map(str, self.endpoints))}"


Source: TypeAlias = Directory | HubCommit | Peers


def hub_commit_of(sources: Iterable[Source]) -> HubCommit | None:
    """The commit at the Hub that is among them, if there is one."""
    return next((source for source in sources if isinstance(source, HubCommit)), None)


def directory_of(sources: Iterable[Source]) -> str:
    """The path of the directory that is named first. Raises RefusalError bad_model when another kind is, or none."""
    first = next(iter(sources), None)
    if isinstance(first, Directory):
        return first.path
    raise refuse("bad_model", f"weights are read from a directory of this machine, not from {first or 'nowhere'}")
