"""Who may say what: no message is forgotten, and the post office keeps to the table."""

import typing

import pytest

from hydra.actors.core.authority import ANYBODY, MEMBERS, SPEAKERS, THE_COORDINATOR, may_say
from hydra.actors.core.facts import LaneBroken
from hydra.actors.core.gateway import ACCEPTS, Gateway
from hydra.actors.core.host import ActorHost
from hydra.protocol import codec
from hydra.protocol.messages import Message
from hydra.protocol.messages.generations import Open
from hydra.protocol.messages.membership import Goodbye, Heartbeat, Hello
from hydra.protocol.messages.models import Rebalance, StatusRequest
from hydra.protocol.messages.plans import RouteBroken, SliceLoaded
from hydra.protocol.wires.wire import Delivery

HERE = {"registry", "planner", "broker", "status", "journal"}  # who lives in the coordinator and is spoken to


def test_every_message_has_its_speakers():
    assert set(SPEAKERS) == set(typing.get_args(Message))
    assert all(SPEAKERS.values())


def test_each_door_is_for_the_coordinator_or_for_members_and_never_for_both():
    for door, kinds in ACCEPTS.items():
        for kind in kinds:
            speakers = SPEAKERS[kind]
            assert speakers <= ANYBODY if door in HERE else speakers == THE_COORDINATOR, (door, kind)


@pytest.mark.parametrize("kind", SPEAKERS, ids=lambda kind: kind.__name__)
def test_a_stranger_greets_and_an_impostor_says_nothing(kind):
    assert may_say("stranger", kind) == (kind in (Hello, Heartbeat, Goodbye))
    assert not may_say("impostor", kind)


@pytest.mark.parametrize(
    ("speaker", "kind"),
    [
        ("worker", Open),
        ("worker", StatusRequest),
        ("frontend", SliceLoaded),
        ("frontend", RouteBroken),
        ("parent", Rebalance),
    ],
)
def test_no_member_speaks_out_of_its_role(speaker, kind):
    assert speaker in MEMBERS and not may_say(speaker, kind)


class Desk:
    """Writes down what it is asked, and may fall over it."""

    def __init__(self, raises=()):
        self.asked, self.raises = [], raises

    def handle(self, event, now_s):
        self.asked.append(event)
        if getattr(event, "message", None) in self.raises:
            raise IndexError("a bug of ours")
        return []


def office(speaker, status):
    post = Gateway(lambda peer, frames: None, None, "registry", lambda peer: speaker[peer])
    host, registry = ActorHost("coordinator", post.carry), Desk()
    host.add("status", status, None)
    host.add("registry", registry, None)

    def comes(peer, message, number):
        post._deliver(host, Delivery(peer, tuple(codec.encode("status", "asks", message, number))))

    return post, registry, comes


ASKED = StatusRequest(ask=1)


async def test_what_is_not_theirs_to_say_is_dropped_and_counted():
    status = Desk()
    post, registry, comes = office({"s": "stranger", "w": "worker", "f": "frontend", "coordinator": "impostor"}, status)
    for number, peer in enumerate(("s", "w", "coordinator"), 1):
        comes(peer, ASKED, number)
    assert status.asked == [] and registry.asked == [] and post.forbidden == 3 and post.malformed == 0
    assert {sample.name: sample.value for sample in post.samples()} == {
        "hydra_forbidden_messages_total": 3,
        "hydra_contained_faults_total": 0,
    }
    comes("f", ASKED, 1)
    assert len(status.asked) == 1


async def test_what_a_stranger_says_does_not_count_among_a_members_messages():
    """A flood of names must not push out the numbers of members, and a gap before a greeting is no loss."""
    speaker = dict.fromkeys((f"s{number}" for number in range(5000)), "stranger") | {"f": "frontend"}
    _, registry, comes = office(speaker, Desk())
    comes("f", ASKED, 1)
    for peer in list(speaker)[:5000]:
        comes(peer, ASKED, 7)
    comes("f", ASKED, 3)
    assert registry.asked == [LaneBroken("f")], "the hole is still seen"


async def test_a_message_that_makes_an_actor_raise_ends_its_senders_membership_and_nothing_else():
    status = Desk(raises=[ASKED])
    post, registry, comes = office({"f": "frontend", "g": "frontend"}, status)
    comes("f", ASKED, 1)
    assert [(lost.peer, "StatusRequest" in lost.why) for lost in registry.asked] == [("f", True)]
    comes("g", StatusRequest(ask=2), 1)
    assert len(status.asked) == 2 and post.contained == 1
