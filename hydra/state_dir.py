"""What a coordinator remembers across its lives: term, wanted models, last placement. One small JSON file.

The file is replaced, never written in place, and flushed before anything is done that depends on it. The directory is
locked by the `up` parent, not here.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import attrs
import structlog

from hydra.actors.coordinator import SavedState
from hydra.actors.wish import Wish
from hydra.protocol.ids import NodeId

FILE_NAME = "coordinator.json"
TERM_MAX = (1 << 32) - 2  # the next one still has room in the header of a step

log = structlog.get_logger()


def read_state(directory: Path) -> SavedState:
    """An absent file is a new cluster; an unreadable one is said aloud and treated as new."""
    try:
        saved = json.loads((directory / FILE_NAME).read_text())
        if not 0 <= saved["term"] <= TERM_MAX:
            raise ValueError(f"a term of {saved['term']}")
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
    except OSError as why:
        log.error("the state file cannot be read; starting anew", file=str(directory / FILE_NAME), why=str(why))
        return SavedState()
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        log.error("the state file makes no sense; starting anew", file=str(directory / FILE_NAME), why=str(why))
        return SavedState()


def begin_anew(directory: Path) -> None:
    """A new `up` asks anew what a branch of the Hub means, and waits for its own workers beside those of a former
    placement; later lives of its coordinator do not.
    """
    saved = read_state(directory)
    if not saved.wishes:
        return
    wishes = tuple(attrs.evolve(wish, pinned=None) for wish in saved.wishes)
    try:
        write_state(directory, attrs.evolve(saved, wishes=wishes, anew=True))
    except OSError as why:
        log.error("the state cannot be written; models keep the commits they had", why=str(why))


def write_state(directory: Path, state: SavedState) -> None:
    """Durable when it returns. Raises OSError, and then what was there before is there still."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "term": state.term,
        "wishes": [attrs.asdict(wish) for wish in state.wishes],
        "nodes": list(state.nodes),
        "anew": state.anew,
    }
    fresh = directory / f"{FILE_NAME}.{os.getpid()}"
    try:
        with fresh.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(directory / FILE_NAME)
    except OSError:
        with suppress(OSError):
            fresh.unlink()  # half a file would only take the space that is missing
        raise
