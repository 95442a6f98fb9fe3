"""A coordinator goes on without its disk: what cannot be written is told once, tried again, and shown."""

import errno
import threading
import time

import structlog

from hydra.actors.families.coordinator import SavedState
from hydra.processes.kept_state import KeptState
from hydra.processes.state_dir import FILE_NAME, read_state, write_state

SOON_S = 10.0


class Disk:
    """Remembers what was written; full, or slow, on demand."""

    def __init__(self):
        self.states, self.full, self.tries = [], False, 0
        self.open = threading.Event()
        self.open.set()

    def write(self, state):
        self.tries += 1
        assert self.open.wait(SOON_S)
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.states.append(state)


def kept_on(disk, **more):
    kept = KeptState(disk.write, retry_every_s=0.01, **more)
    kept.start()
    return kept


def gauge(kept):
    return next(sample.value for sample in kept.samples() if sample.name == "hydra_state_unwritten")


def until(holds):
    deadline_s = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_new_term_is_on_disk_before_anything_is_done_under_it():
    disk = Disk()
    kept = kept_on(disk)
    kept.save(SavedState(term=1))
    assert disk.states == [SavedState(term=1)] and gauge(kept) == 0
    kept.save(SavedState(term=2))
    assert disk.states[-1].term == 2


def test_the_latest_state_wins_and_nobody_waits_for_it():
    disk = Disk()
    kept = kept_on(disk)
    kept.save(SavedState(term=1))
    disk.open.clear()
    for node in "abc":
        kept.save(SavedState(term=1, nodes=(node,)))
    assert gauge(kept) == 1
    disk.open.set()
    kept.close(SOON_S)
    assert disk.states[-1].nodes == ("c",) and gauge(kept) == 0


def test_a_full_disk_is_told_once_tried_again_and_told_when_it_works():
    disk = Disk()
    disk.full = True
    with structlog.testing.capture_logs() as lines:
        kept = kept_on(disk)
        kept.save(SavedState(term=1))
        kept.save(SavedState(term=2))
        until(lambda: kept.failures > 3)
        assert gauge(kept) == 1 and not disk.states
        disk.full = False
        until(lambda: gauge(kept) == 0)
        until(lambda: len(lines) == 2)
    assert disk.states == [SavedState(term=2)]
    assert [line["log_level"] for line in lines] == ["error", "warning"]
    assert "no space left" in lines[0]["why"] and lines[1]["failures"] == kept.failures


def test_a_disk_that_hangs_is_not_waited_for():
    disk = Disk()
    disk.open.clear()
    kept = kept_on(disk, term_wait_s=0.01)
    kept.save(SavedState(term=1))
    kept.save(SavedState(term=2))
    assert gauge(kept) == 1 and not disk.states
    disk.open.set()
    kept.close(SOON_S)
    assert disk.states[-1].term == 2


def test_a_disk_that_stays_full_does_not_hold_up_the_end():
    disk = Disk()
    disk.full = True
    kept = KeptState(disk.write, retry_every_s=3600.0)
    kept.start()
    kept.save(SavedState(term=1))
    began_s = time.monotonic()
    kept.close(SOON_S)
    assert gauge(kept) == 1 and time.monotonic() - began_s < SOON_S / 2


def test_a_directory_that_was_taken_away_and_comes_back(tmp_path):
    place = tmp_path / "state"
    place.write_text("a file where the directory was")
    kept = KeptState(lambda state: write_state(place, state), retry_every_s=0.01)
    kept.start()
    kept.save(SavedState(term=7))
    assert kept.failures
    place.unlink()
    until(lambda: gauge(kept) == 0)
    assert read_state(place).term == 7 and [file.name for file in place.iterdir()] == [FILE_NAME]
