"""The shell around the supervisor, with children that are tiny programs."""

import errno
import sys
from pathlib import Path

import pytest
import structlog
import trio

from hydra.actors.core.identity import Identity
from hydra.actors.families.parent import ChildCommand, Parent
from hydra.actors.families.supervisor import DEATHS_UNSEEN_MAX, ChildPlan, Supervisor
from tests.unit.actors.silent_spoke import SilentSpoke

# Writes down what it was told, says that it is ready, and dies. Later it stays until it is asked to end.
CHILD = """
import os, sys, time
told, write_fd, log = sys.argv[1:]
with open(log, "a") as file:
    file.write(told + ":" + os.environ["HYDRA_FAMILY"] + " ")
os.write(int(write_fd), b"+!")
if len(open(log).read().split()) < 3:
    sys.exit(7)
os.kill(os.getppid(), 2)
time.sleep(60)
"""
EXIT = "import sys; sys.exit(int(sys.argv[1]))"


class Soon:
    """Instead of chance: the shortest pause."""

    def uniform(self, low, high):
        return 0.0


def parent_of(plan, *argv, **more):
    source, *rest = argv
    command = (sys.executable, "-c", source.replace("{", "{{").replace("}", "}}"), *rest)
    return Parent(
        supervisor=Supervisor((plan,), Soon()),
        commands={plan.name: ChildCommand(argv=command)},
        spoke=SilentSpoke(),
        identity=Identity(node_id="up", role="parent", host="here", pid=1),
        **{"say_ready": lambda: None, **more},
    )


FRONTEND = ChildPlan(name="frontend", role="frontend", vital=True)


async def test_a_child_is_told_whether_all_has_been_ready_before(tmp_path):
    """And after that it is started again whatever its exit code says."""
    log, ready = tmp_path / "told", []
    parent = parent_of(FRONTEND, CHILD, "{been_ready}", "{write_fd}", str(log), say_ready=lambda: ready.append(1))
    with trio.fail_after(30), structlog.testing.capture_logs() as lines:
        await parent.run()
    family = parent.membership.identity.hello(0).family
    assert log.read_text().split() == [f"{told}:{family}" for told in ("no", "yes", "yes")]
    assert len(family) == 32 and family not in repr(parent), "nobody guesses it or reads it in a log"
    assert ready == [1] and parent.exit_code == 0
    died = [line["reason"] for line in lines if line["event"] == "child_died"]
    assert [reason.split(" in ")[0].split("; starts")[0] for reason in died] == [
        "exit 7; died once",
        "exit 7; died 2 times",
    ]
    assert [line["event"] for line in lines if line["event"].startswith("child_")] == [
        "child_started", "child_died", "child_started", "child_died", "child_started", "child_ended",
    ]  # fmt: skip
    assert not [line for line in lines if line["log_level"] == "error"]


async def test_the_end_by_itself_is_told_with_cause_and_exit_code():
    parent = parent_of(FRONTEND, EXIT, "7")
    with trio.fail_after(30), structlog.testing.capture_logs() as lines:
        await parent.run()
    given_up, ending = (line for line in lines if line["log_level"] == "error")
    assert given_up["event"] == "child_given_up" and given_up["of_node"] == "frontend"
    assert "the frontend is given up (exit 7; died once; mend what it wrote" in given_up["text"]
    assert ending["exit_code"] == parent.exit_code == 7 and "frontend is given up (last: exit 7)" in ending["why"]


@pytest.mark.parametrize("missing", ["pipe", "process", "pidfd"])
async def test_a_machine_that_can_start_nothing_is_no_end_at_once(missing, monkeypatch):
    """No descriptor, no process, no way to wait for it: each is tried as often as a child that dies."""

    def refuse(*_, **__):
        tries.append(len([*Path("/proc/self/fd").iterdir()]))
        raise OSError(errno.EAGAIN, "not now")

    tries = []
    places = {"pipe": "os.pipe", "process": "Popen", "pidfd": "os.pidfd_open"}
    parent = parent_of(FRONTEND, EXIT, "0")
    monkeypatch.setattr(f"hydra.actors.families.parent.{places[missing]}", refuse)
    with trio.fail_after(30), structlog.testing.capture_logs() as lines:
        await parent.run()
    assert len(tries) == DEATHS_UNSEEN_MAX + 1 and len(set(tries)) == 1, "and no descriptor is left behind"
    assert parent.exit_code == 4 and "could not be started" in lines[-2]["why"]
