"""What a parent says to the person who started it: that the coordinator is silent and why, that it turned us away, and
what a Ctrl-C waits for.
"""

import errno
import io
import itertools
import json
import random
import socket
from contextlib import closing
from functools import partial

import attrs
import pytest
import trio

from hydra.actors.core.gateway import Gateway
from hydra.actors.core.host import ActorHost
from hydra.actors.families.parent import ChildCommand
from hydra.actors.families.supervisor import ChildPlan, Supervisor
from hydra.actors.membership import registry
from hydra.complaint import Complaint
from hydra.processes import parent_run
from hydra.processes.held_port import HeldPort
from hydra.processes.host_port import HostPort
from hydra.processes.open_answers import count_open, words
from hydra.processes.parent_run import ParentRun
from hydra.processes.silence import MOST_S, Silence, reason_of, tell_of_silence
from hydra.processes.turned_away import LASTING_S, Doorstep, parents_doorstep
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import COORDINATOR, ActorName, NodeId
from hydra.protocol.loopback import LOOPBACK
from hydra.protocol.refusal import Refusal
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.zmq import ZmqSettings
from hydra.protocol.wires.zmq_wire import ZmqWires


def test_silence_is_spoken_of_every_few_seconds_then_more_rarely():
    silence = Silence()
    spoken = [second for second in range(601) if silence.due(float(second))]
    assert spoken[:4] == [3, 8, 13, 18] and len(spoken) < 40
    assert max(b - a for a, b in itertools.pairwise(spoken)) <= MOST_S + 1
    assert silence.over() and silence.over() is None, "its end is told once"
    assert silence.due(3.0)


def test_no_word_where_nobody_waited():
    silence = Silence()
    assert not silence.due(2.9) and silence.over() is None


async def test_a_connection_tells_why():
    free = HeldPort.take(LOOPBACK)
    assert await reason_of(HostPort(LOOPBACK, free.port)) == "connection refused"
    with socket.create_server((LOOPBACK, 0)) as other:
        assert "does not answer as a coordinator" in await reason_of(HostPort(LOOPBACK, other.getsockname()[1]))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(113, "No route to host"), "no route to host"),
        (OSError(101, "Network is unreachable"), "network is unreachable"),
        (socket.gaierror(-2, "Name or service not known"), "the name cannot be resolved (Name or service not known)"),
    ],
)
async def test_other_reasons_are_told_as_well(fault, reason, monkeypatch):
    async def fail(host: str, port: int) -> None:
        raise fault if isinstance(fault, socket.gaierror) else OSError("all attempts failed") from ExceptionGroup(
            "", [fault]
        )

    monkeypatch.setattr("hydra.processes.silence.trio.open_tcp_stream", fail)
    assert await reason_of(HostPort("h", 1)) == reason


async def test_a_silent_address_is_not_waited_for(monkeypatch, autojump_clock):
    async def hang(host: str, port: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("hydra.processes.silence.trio.open_tcp_stream", hang)
    assert "within 2 s" in await reason_of(HostPort("h", 1))


async def test_the_lines_as_a_person_reads_them(monkeypatch, autojump_clock):
    said: list[str] = []

    async def refused(at: HostPort) -> str:
        return "connection refused"

    def silent_s() -> float:
        return trio.current_time() - began_s if trio.current_time() - began_s < 9.9 else 0.0

    monkeypatch.setattr("hydra.processes.silence.reason_of", refused)
    began_s = trio.current_time()
    with trio.move_on_after(20):
        await tell_of_silence(silent_s, HostPort("10.0.0.5", 5555), said.append)
    assert said == [
        "still trying tcp://10.0.0.5:5555 (3 s): connection refused",
        "still trying tcp://10.0.0.5:5555 (8 s): connection refused",
        "reached tcp://10.0.0.5:5555",
    ]


TAKEN = Refusal(code="invalid_value", message="the name 'den' belongs to a living process (pid 7)", retry_after_s=0.5)


def test_a_name_that_is_taken_is_final_only_when_it_lasts():
    doorstep = Doorstep()
    told = [doorstep.hear(TAKEN, second / 2) for second in range(int(2 * LASTING_S))]
    assert told == [None] * len(told) and not doorstep.is_news
    final = doorstep.hear(TAKEN, LASTING_S)
    assert final is not None and final.exit_code == 2 and "--node-id" in final.fix and "pid 7" in final.what


def test_two_stories_are_not_one():
    """A former life is met for a moment, twice in a day."""
    doorstep = Doorstep()
    assert doorstep.hear(TAKEN, 0.0) is None and doorstep.is_news
    assert doorstep.hear(TAKEN, 1000.0) is None and doorstep.is_news
    assert doorstep.hear(attrs.evolve(TAKEN, code="unauthorized"), 1000.0 + LASTING_S) is None
    patient = attrs.evolve(TAKEN, retry_after_s=30.0)
    assert doorstep.hear(patient, 2000.0) is None and doorstep.hear(patient, 2030.0), "it was asked to wait so long"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("unauthorized", 6), ("version_mismatch", 4), ("invalid_value", None), ("loading", None)]
)
def test_a_parent_ends_at_once_where_waiting_is_useless(code, exit_code):
    final = parents_doorstep().hear(Refusal(code=code, message="no", retry_after_s=30.0), 0.0)
    assert (None if final is None else final.exit_code) == exit_code


def test_what_a_ctrl_c_waits_for():
    assert words(0, 30.0) == "stopping: no answer is open"
    assert words(1, 30.0) == "stopping: 1 answer is open and has up to 30 s to end; Ctrl-C again stops now"
    assert words(7, 5.0) == "stopping: 7 answers are open and have up to 5 s to end; Ctrl-C again stops now"
    assert words(None, 30.0).startswith("stopping: open answers have up to 30 s")


async def served(body: bytes, stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize(
    ("body", "n_open"),
    [
        (json.dumps({"models": [{"running": 2, "waiting": 1}, {"running": 4, "waiting": 0}]}).encode(), 7),
        (b'{"models": []}', 0),
        (b'{"error": {}}', None),
        (b"<html>", None),
    ],
)
async def test_open_answers_are_those_of_all_models(body, n_open, nursery):
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(partial(trio.serve_listeners, partial(served, body), listeners))
    assert await count_open(f"http://0.0.0.0:{port}") == n_open


async def test_a_cluster_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("hydra.processes.open_answers.OPEN_ANSWERS_S", 0.05)
    with socket.create_server((LOOPBACK, 0)) as silent:
        assert await count_open(f"http://{LOOPBACK}:{silent.getsockname()[1]}") is None


async def test_a_parent_with_the_wrong_token_ends_in_a_complaint(nursery):
    """A whole parent with a child, before the door of a coordinator that is only a registry."""
    with closing(ZmqWires()) as wires:
        hub = wires.hub(f"tcp://{LOOPBACK}:0", f"tcp://{LOOPBACK}:0")
        token = ClusterSettings(join_token="sesame")
        door = registry.Registry(term=1, results_addr=Endpoint("tcp://x:1"), cluster=token)
        post = Gateway(hub.send_nowait, hub.receive, registry.PLANNER_NAME, door.speaker_of)
        host = ActorHost(COORDINATOR, post.carry)
        host.add(ActorName("registry"), door, lambda effect: None)
        nursery.start_soon(host.keep_timers)
        nursery.start_soon(post.pump, host)
        run = ParentRun(
            supervisor=Supervisor((ChildPlan(name=NodeId("den"), role="worker", vital=True),), random.Random(0)),
            commands={NodeId("den"): ChildCommand(argv=("sleep", "60"))},
            zmq=ZmqSettings(router_addr=hub.command_addr, broadcast_addr=hub.broadcast_addr),
            name="parent-den",
            join_token="another",
            say=lambda line: None,
        )
        with pytest.raises(Complaint, match="join token") as caught:
            await run.live()
        assert caught.value.exit_code == 6
        nursery.cancel_scope.cancel()
        hub.close()


async def test_only_the_first_ctrl_c_of_an_up_says_what_it_waits_for(monkeypatch):
    said: list[str] = []

    async def three(url: str) -> int:
        return 3

    monkeypatch.setattr("hydra.processes.parent_run.count_open", three)
    for url, lines in (("http://127.0.0.1:8080", 1), ("", 0)):
        said.clear()
        run = ParentRun(
            supervisor=Supervisor((), random.Random(0)), commands={}, zmq=ZmqSettings(), name="up",
            join_token="", say_ready=lambda: None, url=url, drain_timeout=30.0, say=said.append,
        )  # fmt: skip
        run.ready()
        await run.before_stop()
        await run.before_stop()
        assert said == ["stopping: 3 answers are open and have up to 30 s to end; Ctrl-C again stops now"] * lines


class Full(io.TextIOBase):
    """A disk that takes nothing."""

    def __init__(self) -> None:
        self.refused = 0

    def write(self, text: str) -> int:
        self.refused += 1
        raise OSError(errno.ENOSPC, "no space left on device")


def test_what_a_parent_says_where_nothing_can_be_written_is_no_end(monkeypatch):
    full = Full()
    monkeypatch.setattr("sys.stderr", full)
    parent_run._say("stopping: 3 answers are open")
    assert full.refused
