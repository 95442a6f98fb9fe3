"""What a coordinator remembers across its lives: term, wanted models, last placement. One small JSON file.

The file is replaced, never written in place, and flushed before anything is done that depends on it. The directory is
locked by the `up` parent, not here.
"""

import json
import os
from pathlib import Path

import attrs
import structlog

from hydra.actors.coordinator import SavedState
from hydra.actors.wish import Wish
from hydra.protocol.ids import NodeId

FILE_NAME = "coordinator.json"

log = structlog.get_logger()


def read_state(directory: Path) -> SavedState:
    """An absent file is a new cluster; an unreadable one is said aloud and treated as new."""
    try:
        saved = json.loads((directory / FILE_NAME).read_text())
        return SavedState(
            term=int(saved["term"]),
            wishes=tuple(
                Wish(str(w["model_path"]), w.get("model_id"), w.get("dtype"), w.get("pinned")) for w in saved["wishes"]
            ),
            nodes=tuple(NodeId(str(node)) for node in saved["nodes"]),
            anew=saved.get("anew") is True,
        )
    except FileNotFoundError:
        return SavedState()
    except (ValueError, KeyError, TypeError) as why:
        log.error("the state file makes no sense; starting anew", file=str(directory / FILE_NAME), why=str(why))
        return SavedState()


def begin_anew(directory: Path) -> None:
    """A new `up` asks anew what a branch of the Hub means, and waits for its own workers beside those of a former
    placement; later lives of its coordinator do not.
    """
    saved = read_state(directory)
    if saved.wishes:
        wishes = tuple(attrs.evolve(wish, pinned=None) for wish in saved.wishes)
        write_state(directory, attrs.evolve(saved, wishes=wishes, anew=True))


def write_state(directory: Path, state: SavedState) -> None:
    """Durable when it returns."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "term": state.term,
        "wishes": [attrs.asdict(wish) for wish in state.wishes],
        "nodes": list(state.nodes),
        "anew": state.anew,
    }
    fresh = directory / f"{FILE_NAME}.{os.getpid()}"
    with fresh.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(directory / FILE_NAME)
