"""Faults without a quiet stretch: processes are killed and stopped at random, from a seed, while clients ask on.

Whatever dies, every answer is the undisturbed text, nobody waits for ever, and what was killed comes back: nothing is
given up for good. HYDRA_CHAOS_S is how long it goes on, HYDRA_CHAOS_SEED which faults come.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import psutil
import pytest

from tests.e2e.clients import Answer, Clients
from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.served import Served, complete

CHAOS_S = float(os.environ.get("HYDRA_CHAOS_S", "600"))
SEED = int(os.environ.get("HYDRA_CHAOS_SEED", "1"))
WORKERS = 4
ROLES = ("_coordinator", "_frontend", "_worker")
ANSWER_WITHIN_S = 120.0
WHOLE_WITHIN_S = 60.0
PAUSE_S = (2.0, 10.0)  # between two faults: less than it takes to get over most of them
STOPPED_S = (0.5, 12.0)  # beyond 10 s of silence the parent kills it
KINDS = ("one worker", "one worker", "two workers", "worker and coordinator", "coordinator", "stop")
DEATHS_ALLOWED = 2  # an answer in flight at more losses may be refused with `replay_limit`


@attrs.frozen
class Fault:
    at_s: float
    kind: str
    victims: tuple[str, ...]


@attrs.define(eq=False)
class Killer:
    """Strikes the children of one `up`. They are found as processes, not by asking the cluster."""

    up: psutil.Process
    rng: random.Random
    faults: list[Fault] = attrs.field(factory=list, init=False)
    _stopped: dict[int, float] = attrs.field(factory=dict, init=False)  # pid -> when it goes on

    def children(self) -> dict[str, int]:
        """The pids of those that live now: "coordinator", "frontend", "w0" ..."""
        found: dict[str, int] = {}
        for child in self.up.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = child.cmdline()
                role = next((word[1:] for word in words if word in ROLES), None)
                if role == "worker":
                    role = str(json.loads(words[words.index("--spec") + 1])["node_id"])
                if role is not None:
                    found[role] = child.pid
        return found

    def strike(self) -> None:
        kind, children = self.rng.choice(KINDS), self.children()
        workers = sorted(name for name in children if name.startswith("w"))
        self.rng.shuffle(workers)
        victims = {
            "one worker": workers[:1],
            "two workers": workers[:2],
            "worker and coordinator": [*workers[:1], "coordinator"],
            "coordinator": ["coordinator"],
            "stop": workers[:1],
        }[kind]
        victims = [name for name in victims if name in children]
        self.faults.append(Fault(time.monotonic(), kind, tuple(victims)))
        for name in victims:
            self._signal(children[name], signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
            if kind == "stop":
                self._stopped[children[name]] = time.monotonic() + self.rng.uniform(*STOPPED_S)

    def pause(self, within_s: float) -> None:
        """Until the next fault; whoever was stopped for long enough goes on meanwhile."""
        until_s = time.monotonic() + min(self.rng.uniform(*PAUSE_S), within_s)
        while time.monotonic() < until_s:
            self.resume(time.monotonic())
            time.sleep(0.05)

    def resume(self, now_s: float) -> None:
        for pid, at_s in list(self._stopped.items()):
            if at_s <= now_s:
                del self._stopped[pid]
                self._signal(pid, signal.SIGCONT)

    def losses_during(self, answer: Answer) -> int:
        """Workers that were struck while this answer was computed."""
        ended_s = answer.ended_s or time.monotonic()
        struck = [fault for fault in self.faults if answer.asked_s <= fault.at_s <= ended_s]
        return sum(name != "coordinator" for fault in struck for name in fault.victims)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it died by itself, or its parent killed it
            if psutil.pid_exists(pid) and psutil.Process(pid).ppid() == self.up.pid:
                os.kill(pid, number)


@pytest.fixture
def cluster(untied: Served, tmp_path: Path) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path, untied.directory, workers=WORKERS) as running:
        yield running


@pytest.mark.long
@pytest.mark.timeout(CHAOS_S + 2 * ANSWER_WITHIN_S + WHOLE_WITHIN_S + 60.0)
def test_nothing_is_lost_while_something_always_breaks(cluster: RunningCluster, untied: Served) -> None:
    killer = Killer(psutil.Process(cluster.process.pid), random.Random(SEED))
    frontend = killer.children()["frontend"]
    patient = cluster.client.with_options(timeout=ANSWER_WITHIN_S + 10.0)
    clients = Clients(patient, cluster.model_id(), untied, ANSWER_WITHIN_S)
    began_s = time.monotonic()
    try:
        with clients.asking(streaming=4, whole=2):
            while (left_s := began_s + CHAOS_S - time.monotonic()) > 0:
                killer.pause(left_s)
                killer.strike()
                assert cluster.process.poll() is None, "up has exited"
                assert not wrong(clients, killer)
            killer.resume(float("inf"))
            calm_s = time.monotonic()
            cluster.wait_until("everybody is back", WHOLE_WITHIN_S, lambda: is_whole(cluster))
            assert complete(cluster, untied.prompts[0], stream=True) == untied.answers[0]
            assert time.monotonic() - calm_s < WHOLE_WITHIN_S
        assert not wrong(clients, killer)
        assert killer.children()["frontend"] == frontend, "the frontend was never struck, and is another one"
        assert cluster.process.poll() is None
        assert sum(killer.losses_during(answer) > 0 for answer in clients.done()) >= len(killer.faults) / 4
    finally:
        killer.resume(float("inf"))
        print(story(clients, killer, began_s))


def wrong(clients: Clients, killer: Killer) -> list[str]:
    """What is wrong with the answers, but for those that met more losses than one may be tried again at."""
    spared = {id(a) for a in clients.done() if a.fault_code == "replay_limit" and met_too_many(a, killer)}
    return clients.faults(but=spared)


def met_too_many(answer: Answer, killer: Killer) -> bool:
    return killer.losses_during(answer) > DEATHS_ALLOWED


def is_whole(cluster: RunningCluster) -> bool:
    """Whatever is asked while the coordinator is only coming back is no answer."""
    try:
        status = cluster.status()
    except (ValueError, OSError):
        return False
    return status.get("ready") is True and len(status["nodes"]) == WORKERS


def story(clients: Clients, killer: Killer, began_s: float) -> str:
    """What came, for whoever reads a failure."""
    done = clients.done()
    hit = [answer for answer in done if killer.losses_during(answer)]
    longest_s = max((answer.longest_pause_s(time.monotonic()) for answer in clients.answers), default=0.0)
    lines = [
        f"seed {SEED}: {len(done)} answers, {len(hit)} with a fault inside, longest pause {longest_s:.1f} s, "
        f"{sum(a.turned_away for a in clients.answers)} times turned away, "
        f"{sum(a.fault_code == 'replay_limit' for a in done)} beyond the replay limit; "
        f"{dict(Counter(fault.kind for fault in killer.faults))}"
    ]
    lines += [f"{fault.at_s - began_s:7.2f}  {fault.kind}: {', '.join(fault.victims)}" for fault in killer.faults]
    return "\n".join(lines)
