"""The shell around the supervisor, with children that are tiny programs."""

import sys

import trio

from hydra.actors.parent import ChildCommand, Parent
from hydra.actors.supervisor import ChildPlan, Supervisor
from tests.unit.actors.silent_spoke import SilentSpoke

# Writes down what it was told, says "ready", and dies: the second time for good.
CHILD = """
import os, sys
told, write_fd, log = sys.argv[1:]
with open(log, "a") as file:
    file.write(told + ":" + os.environ["HYDRA_FAMILY"] + " ")
os.write(int(write_fd), b"!")
sys.exit(7 if len(open(log).read().split()) == 2 else 1)
"""


class Soon:
    """Instead of chance: the shortest pause."""

    def uniform(self, low, high):
        return 0.0


async def test_a_child_is_told_whether_all_has_been_ready_before_and_of_which_family_it_is(tmp_path):
    log, ready = tmp_path / "told", []
    argv = (sys.executable, "-c", CHILD.replace("{", "{{").replace("}", "}}"), "{been_ready}", "{write_fd}", str(log))
    parent = Parent(
        supervisor=Supervisor((ChildPlan(name="frontend", role="frontend", vital=True),), Soon()),
        commands={"frontend": ChildCommand(argv=argv)},
        spoke=SilentSpoke(),
        node_id="up",
        host="here",
        auth="",
        say_ready=lambda: ready.append(1),
    )
    with trio.fail_after(30):
        await parent.run()
    family = parent._hello(0).family
    assert log.read_text().split() == [f"no:{family}", f"yes:{family}"] and ready == [1] and parent.exit_code == 7
    assert len(family) == 32 and family not in repr(parent), "nobody guesses it or reads it in a log"
