"""A download killed at twenty random points: what is started again fetches no byte more than once more."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from hydra.store import range_cache, range_fetch
from tests import range_download as plan
from tests.fake_hub import fake_hub

ROOT = Path(__file__).parents[3]
KILLS = 20


@attrs.define(eq=False)
class Killer:
    """Ends a process once so many bytes have gone out to it, in the middle of whatever it does then."""

    threshold: int
    sent: int = 0
    pid: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def went_out(self, n_bytes: int) -> None:
        with self.lock:
            self.sent += n_bytes
            if self.pid and self.sent >= self.threshold:
                os.kill(self.pid, signal.SIGKILL)
                self.pid = 0


def killed(cache: Path, threshold: int) -> dict[str, NDArray[np.int64]]:
    """Downloads until so many bytes went out. Returns for each file how often each of its bytes did."""
    killer = Killer(threshold)
    with fake_hub() as hub:
        hub.repos[plan.REPO] = plan.CONTENT
        hub.went_out = killer.went_out
        argv = [sys.executable, "-m", "tests.range_download", str(cache), hub.url]
        with killer.lock:  # nothing counts before the process can be killed for it
            process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            killer.pid = process.pid
        assert process.wait(60) == -signal.SIGKILL
        return {name: hub.times_sent(name, len(raw)) for name, raw in plan.CONTENT.items()}


def journaled(cache: Path) -> int:
    """Bytes that the killed process had completed."""
    lines = [line for path in cache.glob("*/*.ranges") for line in path.read_text().splitlines()]
    return sum(said.get("len", 0) for said in map(json.loads, lines))


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_download_goes_on_where_it_was(tmp_path, monkeypatch, number):
    monkeypatch.setattr(range_fetch, "CHUNK_BYTES", 0)  # put back afterwards what the download sets
    monkeypatch.setattr(range_cache, "REQUEST_BYTES", 0)
    threshold = random.Random(1000 + number).randrange(plan.WANTED_BYTES)
    first = killed(tmp_path, threshold)
    kept = journaled(tmp_path)
    assert threshold - kept <= range_cache.THREADS * plan.REQUEST_BYTES, "only what was in flight is lost"
    with fake_hub() as hub:
        hub.repos[plan.REPO] = plan.CONTENT
        folder = plan.download(tmp_path, hub.url)
        assert sum(sent for _, _, sent in hub.sent) == plan.WANTED_BYTES - kept, "what was journaled is believed"
        second = {name: hub.times_sent(name, len(raw)) for name, raw in plan.CONTENT.items()}
    for name, raw in plan.CONTENT.items():
        wanted, have = np.zeros(len(raw), bool), (folder / name).read_bytes()
        for span in (slice(w.offset, w.offset + w.length) for w in plan.WANTED if w.file == name):
            wanted[span] = True
            assert have[span] == raw[span]
        assert first[name].max() <= 1 and second[name].max() <= 1
        assert not (first[name] + second[name])[~wanted].any()
