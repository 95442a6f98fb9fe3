"""Who of ours holds which port and which state directory on this machine: a card per parent, in its cache.

A card is there to be read by the next parent that finds a port taken. It is believed only while the process that wrote
it lives; what cannot be read is no card. Nothing depends on a card but the words of a complaint.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import psutil
import structlog

FOLDER = "run"  # in the cache directory
SAME_START_S = 1.0  # a clock's grain: two processes with one pid are further apart

log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class Card:
    """One parent and what it holds. `name` is how a person knows it: "the cluster at http://…", "the worker den"."""

    pid: int
    started_s: float
    name: str
    ports: tuple[int, ...]
    state_dir: str = ""

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def is_alive(self) -> bool:
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started_s) < SAME_START_S
        except psutil.Error:
            return False


@attrs.frozen
class PortHolders:
    """The cards in one directory."""

    folder: Path

    @classmethod
    def of(cls, cache_dir: Path) -> "PortHolders":
        return cls(cache_dir / FOLDER)

    def of_port(self, port: int) -> Card | None:
        return next((card for card in self._cards() if port in card.ports), None)

    def of_state(self, state_dir: Path) -> Card | None:
        return next((card for card in self._cards() if card.state_dir == str(state_dir.absolute())), None)

    @contextmanager
    def card(self, name: str, ports: Sequence[int], state_dir: Path | None = None) -> Iterator[None]:
        """Ours is there meanwhile. That it cannot be written is said, and no reason not to start."""
        pid = os.getpid()
        card = Card(
            pid=pid,
            started_s=psutil.Process(pid).create_time(),
            name=name,
            ports=tuple(ports),
            state_dir="" if state_dir is None else str(state_dir.absolute()),
        )
        file = self.folder / f"{pid}.json"
        try:
            self._sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = file.with_suffix(".fresh")
            fresh.write_text(json.dumps(attrs.asdict(card)))
            fresh.replace(file)
        except OSError as error:
            log.warning("others will not be told who holds these ports", file=str(file), reason=str(error))
        try:
            yield
        finally:
            with suppress(OSError):  # gone with its directory, or never written
                file.unlink()

    def _cards(self) -> Iterator[Card]:
        return (card for card in map(_read, self._files()) if card is not None and card.is_alive())

    def _files(self) -> list[Path]:
        try:
            return sorted(self.folder.glob("*.json"))
        except OSError:
            return []

    def _sweep(self) -> None:
        """Takes the cards of the dead away."""
        for file in self._files():
            card = _read(file)
            if card is None or not card.is_alive():
                file.unlink(missing_ok=True)


def _read(file: Path) -> Card | None:
    try:
        holder = json.loads(file.read_text())
        return Card(
            pid=int(holder["pid"]),
            started_s=float(holder["started_s"]),
            name=str(holder["name"])[:200],
            ports=tuple(int(port) for port in holder["ports"]),
            state_dir=str(holder["state_dir"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
