"""Every machine of these tests checks itself after each event that it has handled."""

from functools import wraps

import pytest

from hydra.actors.core.membership import Member
from hydra.actors.families.supervisor import Supervisor
from hydra.actors.membership.registry import Registry
from hydra.actors.planning.planner import Planner
from hydra.actors.sessions.session import Session
from hydra.actors.sessions.sessions import Sessions
from hydra.actors.stage.stage import Stage
from hydra.actors.stage.stage_line import StageLine
from hydra.simulation.inspector import parts_of

CHECKED = {
    **dict.fromkeys((Member, Registry, Supervisor, Session, Sessions, Stage), ("handle",)),
    StageLine: ("accept",),
}


def checking(handle, check):
    @wraps(handle)
    def handled(machine, *args, **named):
        effects = handle(machine, *args, **named)
        check(machine)
        return effects

    return handled


def check_parts(planner):
    for part in parts_of(planner):
        part.check()


@pytest.fixture(scope="module", autouse=True)
def machines_check_themselves():
    with pytest.MonkeyPatch.context() as patch:
        for machine, names in CHECKED.items():
            for name in names:
                patch.setattr(machine, name, checking(getattr(machine, name), machine.check))
        patch.setattr(Planner, "handle", checking(Planner.handle, check_parts))
        yield
