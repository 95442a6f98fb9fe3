"""An entry of the journal in the log: a sentence on a terminal, and its fields in JSON elsewhere."""

import io
import json
import sys

import pytest
import structlog

from hydra.actors.families.journal_log import log_entry
from hydra.log import set_up
from hydra.protocol.ids import Epoch
from hydra.protocol.messages.journal import JournalEntry

LOST = JournalEntry(kind="lost", actor="registry", node="w1", role="worker", reason="no heartbeat for 5.0 s")
UP = JournalEntry(kind="route_up", model_id="m", route=1, epoch=Epoch(2, 7), nodes=("w2",), took_s=0.5)


class Terminal(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def written(monkeypatch):
    """What a fresh process writes of some entries, on a terminal or elsewhere."""
    kept = structlog.get_config()
    monkeypatch.setattr(set_up, "_sink", None)
    monkeypatch.setattr(set_up.atexit, "register", lambda work: None)

    def lines_of(entries, *, is_terminal):
        stream = Terminal(is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        set_up.set_up_logging("coordinator")
        structlog.configure(cache_logger_on_first_use=False)
        for entry in entries:
            log_entry(entry)
        set_up.flush_log()
        set_up._sink.close(1.0)
        return stream.getvalue().splitlines()

    yield lines_of
    structlog.configure(**kept)
    structlog.contextvars.clear_contextvars()


def test_a_terminal_shows_the_sentence_and_no_field(written):
    lost, up = written([LOST, UP], is_terminal=True)
    assert "lost w1 (no heartbeat for 5.0 s)" in lost and "warning" in lost
    assert "route 1 of m is up in epoch 2.7, 0.50 s after it went" in up and "model_id" not in up and "kind" not in up


def test_programs_get_the_kind_and_the_fields(written):
    lost, up = (json.loads(line) for line in written([LOST, UP], is_terminal=False))
    assert (lost["event"], lost["of_node"], lost["of_role"], lost["role"]) == ("lost", "w1", "worker", "coordinator")
    assert lost["level"] == "warning" and lost["text"] == "lost w1 (no heartbeat for 5.0 s)"
    assert (up["event"], up["epoch"], up["nodes"], up["took_s"]) == ("route_up", "2.7", ["w2"], 0.5)
    assert "session" not in up and "reason" not in up
