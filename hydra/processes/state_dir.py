"""What a coordinator remembers across its lives: term, wanted models, last placement. One small JSON file.

The file is replaced, never written in place, and flushed before anything is done that depends on it. The directory is
locked by the `up` parent, not here.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import attrs
import structlog

from hydra.actors.families.coordinator import SavedState
from hydra.actors.membership.registry import TERM_JUMP_MAX
from hydra.actors.planning.desired_model import DesiredModel
from hydra.protocol.ids import TERM_MAX, NodeId
from hydra.protocol.limits import REPLICAS_MAX
from hydra.protocol.model.model_spec import Quantize

FILE_NAME = "coordinator.json"

log = structlog.get_logger()


def read_state(directory: Path) -> SavedState:
    """An absent file is a new cluster; an unreadable one is said aloud and treated as new. A term that cannot be is
    forgotten alone: those who served under the right one will say it.
    """
    file = directory / FILE_NAME
    try:
        state = _parsed(json.loads(file.read_text()))
    except FileNotFoundError:
        return SavedState()
    except OSError as error:
        log.error("the state file cannot be read; starting anew", file=str(file), why=str(error))
        return SavedState()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        log.error("the state file makes no sense; starting anew", file=str(file), why=f"{error!r:.200}")
        return SavedState()
    if not 0 <= state.term < TERM_MAX - TERM_JUMP_MAX:
        log.error("the saved term cannot be; starting at the first", file=str(file), term=f"{state.term!r:.40}")
        return attrs.evolve(state, term=0)
    return state


def _parsed(saved: Any) -> SavedState:
    """Raises ValueError, KeyError or TypeError."""
    if type(saved["term"]) is not int or type(saved["wishes"]) is not list or type(saved["nodes"]) is not list:
        raise TypeError("a term is a whole number, wishes and nodes are lists")
    return SavedState(
        term=saved["term"],
        desired=tuple(_desired(desired) for desired in saved["wishes"]),
        nodes=tuple(NodeId(str(node)) for node in saved["nodes"]),
        anew=saved.get("anew") is True,
    )


def _desired(saved: Any) -> DesiredModel:
    if type(saved) is not dict:
        raise TypeError("a wish is a map")
    optional = [saved.get(key) for key in ("model_id", "dtype", "pinned")]
    if type(saved["model_path"]) is not str or any(text is not None and type(text) is not str for text in optional):
        raise TypeError("a wish is made of texts")
    replicas = saved.get("replicas", 1)
    if type(replicas) is not int or not 1 <= replicas <= REPLICAS_MAX:
        raise ValueError("replicas are a small number")
    quantize = next((known for known in get_args(Quantize) if known == saved.get("quantize", "none")), None)
    if quantize is None:
        raise ValueError(f"nothing is quantised to {saved['quantize']!r:.40}")
    model_id, dtype, pinned = optional
    return DesiredModel(saved["model_path"], model_id, dtype, pinned, replicas, quantize)


def begin_anew(directory: Path) -> None:
    """A new `up` asks anew what a branch of the Hub means, and waits for its own workers beside those of a former
    placement; later lives of its coordinator do not.
    """
    saved = read_state(directory)
    if not saved.desired:
        return
    desired = tuple(attrs.evolve(desired, pinned=None) for desired in saved.desired)
    try:
        write_state(directory, attrs.evolve(saved, desired=desired, anew=True))
    except OSError as error:
        log.error("the state cannot be written; models keep the commits they had", why=str(error))


def write_state(directory: Path, state: SavedState) -> None:
    """Durable when it returns. Raises OSError, and then what was there before is there still."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "term": state.term,
        "wishes": [attrs.asdict(desired) for desired in state.desired],
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
