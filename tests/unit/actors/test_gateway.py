"""The post office: nonsense stops at the door, and what was lost on the way is noticed."""

import pytest

from hydra.actors.core.facts import LaneBroken
from hydra.actors.core.gateway import PEERS_MAX, Gateway
from hydra.actors.core.host import ActorHost
from hydra.actors.core.machine import Received, Send
from hydra.protocol import codec
from hydra.protocol.ids import Address
from hydra.protocol.messages.generations import Close
from hydra.protocol.messages.membership import Beacon, Goodbye, HeartbeatSeen
from hydra.protocol.wires.wire import Delivery, PeerGone, WireFull

SEEN = HeartbeatSeen(generation=1)


class Diary:
    """An actor that writes down what it is told."""

    def __init__(self):
        self.heard = []

    def handle(self, event, now_s):
        self.heard.append(event.message if isinstance(event, Received) else event)
        return []


class Talker(Diary):
    """Says what it has to say at the first word, and writes down all of them."""

    def __init__(self, says):
        super().__init__()
        self.says = says

    def handle(self, event, now_s):
        super().handle(event, now_s)
        says, self.says = self.says, []
        return says


async def never():
    raise AssertionError("nobody pumps here")


@pytest.fixture
def office():
    sent = []
    post = Gateway(lambda peer, frames: sent.append((peer, frames)), never, "member")
    host, diary = ActorHost("me", post.carry), Diary()
    host.add("member", diary, None)
    return post, host, diary, sent


def comes(post, host, number, message=SEEN, to="member", peer="hub"):
    post._deliver(host, Delivery(peer, tuple(codec.encode(to, "registry", message, number))))


async def test_what_is_said_to_each_peer_is_counted_from_one(office):
    post, _, _, sent = office
    for peer in ("a", "a", "b"):
        post.carry(Address(peer, "member"), "registry", SEEN)
    assert [(peer, codec.decode(frames).number) for peer, frames in sent] == [("a", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize("fault", [PeerGone, WireFull])
async def test_what_the_wire_would_not_take_leaves_a_hole_in_the_count(office, fault):
    post, _, _, sent = office
    take = post.dispatch

    def refuse(peer, frames):
        raise fault

    post.dispatch = refuse
    post.carry(Address("a", "member"), "registry", SEEN)
    post.dispatch = take
    post.carry(Address("a", "member"), "registry", SEEN)
    assert post.undelivered == 1 and codec.decode(sent[0][1]).number == 2


async def test_what_is_too_large_takes_no_number_and_comes_back_to_its_sender(office):
    post, host, diary, sent = office
    to, large = Address("hub", "registry"), Goodbye(generation=1, why="x" * codec.CONTROL_BYTES_MAX)
    host.add("talker", Talker([Send(to, SEEN), Send(to, large), Send(to, SEEN)]), None)
    host.post("talker", "talk")
    assert [codec.decode(frames).number for _, frames in sent] == [1, 2] and post.undelivered == 1
    (undelivered,) = host._cells["talker"].machine.heard[1:]
    assert (undelivered.to, undelivered.message, undelivered.refusal.code) == (to, large, "invalid_value")
    assert "a Goodbye beyond" in undelivered.refusal.message and diary.heard == []


async def test_a_hole_in_the_count_is_told_before_what_follows(office):
    post, host, diary, _ = office
    for number in (1, 2, 4, 5):
        comes(post, host, number)
    assert diary.heard == [SEEN, SEEN, LaneBroken("hub"), SEEN, SEEN]


@pytest.mark.parametrize(
    "numbers",
    [(7, 8), (1, 2, 3), (40, 1, 2), (1, 2, 1, 2)],
    ids=["the first one heard", "in order", "a new life of the peer", "two lives"],
)
async def test_what_is_no_hole(office, numbers):
    post, host, diary, _ = office
    for number in numbers:
        comes(post, host, number)
    assert diary.heard == [SEEN] * len(numbers)


async def test_a_broadcast_is_outside_the_count(office):
    post, host, diary, _ = office
    beacon = Beacon(term=1, number=1, counter=1)
    comes(post, host, 1)
    comes(post, host, 0, beacon)
    comes(post, host, 2)
    assert diary.heard == [SEEN, beacon, SEEN]


async def test_each_peer_has_its_own_count(office):
    post, host, diary, _ = office
    for number in (1, 2):
        comes(post, host, number, peer="a")
        comes(post, host, number + 10, peer="b")
    assert LaneBroken("a") not in diary.heard and LaneBroken("b") not in diary.heard


async def test_a_flood_of_names_is_forgotten(office):
    post, host, _, _ = office
    for number in range(PEERS_MAX + 10):
        comes(post, host, 1, peer=f"p{number}")
    assert len(post._heard) == PEERS_MAX and "p0" not in post._heard


async def test_nonsense_and_the_wrong_door_stop_here(office):
    post, host, diary, _ = office
    post._deliver(host, Delivery("hub", (b"nonsense",)))
    comes(post, host, 1, Close(session=1, attempt=0))
    comes(post, host, 2, SEEN, to="broker")
    assert post.malformed == 3 and diary.heard == []
