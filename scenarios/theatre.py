"""What a story may do to a cluster and see of it, whether its processes are simulated or real.

A theatre promises names, faults and truth: what each reader was told, and what an undisturbed cluster would have said.
It refuses to know what a story is about. Time is Trio's own in both: a story sleeps with `trio.sleep`.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from scenarios.playbill import Playbill


@attrs.frozen(kw_only=True)
class Cast:
    """Who plays. Workers started by hand have a parent of their own, so that one can be lost together with it."""

    workers: int = 3
    by_hand: int = 0  # of them; the others are children of `up`
    distant: bool = False  # those by hand are reached through lines that can be cut
    mortal: bool = False  # every worker is started by hand, and dies of the poison token


@attrs.frozen(kw_only=True)
class Sight:
    """What `/api/cluster/status` and `/metrics` show. While nobody answers: `BLIND`."""

    ready: bool = False
    epoch: str = ""
    pids: Mapping[str, int] = attrs.field(factory=dict)  # of the workers and the coordinator
    layers: Mapping[str, range] = attrs.field(factory=dict)  # of the workers that hold some, in order
    running: int = 0
    waiting: int = 0
    kv_blocks_held: int = 0
    stale_dropped: int = 0
    tokens_sent: int = 0

    def holder_of(self, layer: int) -> str:
        """Raises LookupError while nobody holds it."""
        for name, held in self.layers.items():
            if layer in held:
                return name
        raise LookupError(f"nobody holds layer {layer}")

    def shares(self) -> str:
        return ", ".join(f"{name} {held.start}-{held.stop - 1}" for name, held in self.layers.items())


BLIND = Sight()


class Reader(Protocol):
    """Somebody who asked, and reads the stream."""

    @property
    def name(self) -> str: ...

    @property
    def prompt(self) -> tuple[int, ...]: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def tokens(self) -> Sequence[int]:
        """What it has been told so far."""
        ...

    @property
    def finish(self) -> str | None: ...

    @property
    def error(self) -> str | None:
        """The code of the error event or answer that ended the stream."""
        ...

    @property
    def over(self) -> bool: ...

    async def until(self, n_tokens: int) -> None:
        """Returns also when the stream ends before."""
        ...

    async def finished(self) -> None: ...

    def leave(self) -> None:
        """Closes the connection."""
        ...


class Theatre(Protocol):
    """A running cluster. Every fault is written to the playbill by who injects it."""

    @property
    def cast(self) -> Cast: ...

    @property
    def bill(self) -> Playbill: ...

    @property
    def rng(self) -> random.Random:
        """The seed's choices: victims and moments."""
        ...

    @property
    def n_layers(self) -> int: ...

    @property
    def answer_tokens(self) -> int:
        """A usual answer: long enough to be disturbed."""
        ...

    @property
    def long_answer_tokens(self) -> int: ...

    @property
    def poison(self) -> int:
        """The token that kills whoever computes it, if the cast is mortal."""
        ...

    @property
    def by_hand(self) -> tuple[str, ...]: ...

    async def prompts(self, n: int) -> list[tuple[int, ...]]:
        """Of different lengths, with undisturbed answers of `answer_tokens` that are known and have no near tie."""
        ...

    def expected(self, prompt: tuple[int, ...], n_tokens: int) -> list[int]:
        """The undisturbed greedy answer to one of `prompts`, from an oracle or from before the story began."""
        ...

    def ask(self, prompt: tuple[int, ...], max_tokens: int) -> Reader: ...

    async def look(self) -> Sight: ...

    async def kill(self, name: str, *, returns: bool = True) -> None:
        """SIGKILL. `returns=False`, only for who is by hand: of its parent first, so that nobody starts it again."""
        ...

    async def pause(self, name: str) -> None:
        """SIGSTOP."""
        ...

    async def resume(self, name: str) -> None:
        """SIGCONT, to the process that was stopped if it still is there."""
        ...

    async def cut(self, name: str) -> None:
        """Nothing reaches a distant worker, nor does it reach the coordinator; no connection is closed."""
        ...

    async def heal(self, name: str) -> None: ...

    async def rebalance(self) -> None: ...

    def poison_deaths(self) -> int: ...

    async def close(self) -> None:
        """Ends the cluster in good order. Raises AssertionError when anything is left behind."""
        ...
