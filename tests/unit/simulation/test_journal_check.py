"""The checker of the journal sees what it is for."""

import attrs
import pytest

from hydra.actors.core.journal import JournalRing
from hydra.protocol.ids import Epoch
from hydra.protocol.messages.journal import JournalEntry
from hydra.simulation.journal_check import check_journal

BEGAN = JournalEntry(kind="coordinator_began")
PLANNED = JournalEntry(kind="planned", route=1, epoch=Epoch(1, 2), nodes=("w1",))
READY = JournalEntry(kind="slice_ready", route=1, epoch=Epoch(1, 2), node="w1")
UP, DOWN = attrs.evolve(PLANNED, kind="route_up"), attrs.evolve(PLANNED, kind="route_down")
AGAIN = attrs.evolve(PLANNED, epoch=Epoch(1, 3))


def ring(*entries):
    made = JournalRing()
    for entry in entries:
        made.add(entry, 0.0, "coordinator")
    return made.all()


def test_what_is_in_order_passes():
    check_journal(ring(BEGAN, PLANNED, READY, UP, DOWN, AGAIN))
    check_journal(ring(UP, UP))  # its beginning is forgotten


@pytest.mark.parametrize(
    "entries",
    [
        (PLANNED, PLANNED),
        (PLANNED, READY, UP, AGAIN),
        (PLANNED, UP),
        (READY, UP),
        (PLANNED, READY, UP, UP),
        (PLANNED, READY, DOWN),
        (PLANNED, READY, UP, attrs.evolve(DOWN, epoch=Epoch(1, 9))),
    ],
    ids=["an epoch twice", "planned while up", "not ready", "not planned", "up twice", "down unseen", "another epoch"],
)
def test_what_is_out_of_order_is_seen(entries):
    with pytest.raises(AssertionError):
        check_journal(ring(BEGAN, *entries))


def test_ids_ascend():
    with pytest.raises(AssertionError):
        check_journal(ring(BEGAN, PLANNED)[::-1])
