"""Who gets the next row: the key and the request that have the fewest, and nobody waits for ever."""

import random

import attrs
import pytest

from hydra.actors.scheduling.fair_queue import FairQueue, Waiting, few_of, places_kept
from hydra.actors.scheduling.ranking import Ranking
from hydra.actors.scheduling.row import RowKey
from hydra.protocol.batch import int32
from hydra.protocol.messages.generations import Open
from hydra.protocol.sampling import GREEDY

OPENING = Open(
    session=0,
    attempt=0,
    model_id="m",
    history=int32([1]),
    prompt_tokens=1,
    max_tokens=1,
    params=GREEDY,
    stop_ids=(),
)


class Crowd:
    """A queue, and generations numbered in the order of their coming."""

    def __init__(self, rows=256, places=1024):
        self.queue = FairQueue(rows, places)
        self.number = 0

    def ends_all(self):
        """A route is gone with all rows."""
        for key in list(self.queue._running):
            self.queue.end(key)

    def comes(self, request=0, *, owner="", peer="f", attempt=0, arrival=None):
        """The number of the generation, or None when there was no place for it."""
        self.number += 1
        opening = attrs.evolve(OPENING, session=self.number, attempt=attempt, request=request, owner=owner)
        waiting = Waiting(RowKey(peer, self.number), opening, self.number if arrival is None else arrival)
        if not attempt and self.queue.refusal(waiting) is not None:
            return None
        self.queue.put(waiting)
        self.queue.check()
        return self.number

    def many(self, count, request=0, **facts):
        return [self.comes(request, **facts) for _ in range(count)]

    def enters(self, *, memory_is_scarce=False):
        waiting = self.queue.next(memory_is_scarce=memory_is_scarce)
        if waiting is None:
            return None
        self.queue.begin(waiting)
        self.queue.check()
        return waiting.key.session

    def all_enter(self):
        return list(iter(self.enters, None))

    def ends(self, *sessions, peer="f"):
        for session in sessions:
            self.queue.end(RowKey(peer, session))
            self.queue.check()


def test_among_equals_the_first_to_come_is_first():
    crowd = Crowd()
    came = crowd.many(20)
    assert crowd.all_enter() == came and len(crowd.queue) == 0


def test_a_request_of_many_takes_turns_with_those_who_came_later():
    crowd = Crowd(rows=8)
    large = crowd.many(100, request=1)
    assert crowd.all_enter() == large[:7], "one row is kept for others"
    small = crowd.many(3, request=2)
    assert crowd.all_enter() == small[:1]
    crowd.ends(*large[:3])
    assert crowd.all_enter() == small[1:], "what ends goes to whoever has least; one row is kept again"


def test_keys_are_equal_however_many_requests_they_send():
    crowd = Crowd(rows=16)
    busy = [crowd.comes(request, owner="a") for request in range(1, 31)]
    assert crowd.all_enter() == busy[:16], "nobody else is there"
    late = [crowd.comes(request, owner="b") for request in range(31, 61)]
    for turn in range(8):
        crowd.ends(busy[turn])
        assert crowd.all_enter() == [late[turn]]
    crowd.ends(busy[8])
    assert crowd.all_enter() == [busy[16]], "seven to eight: now it is the other's turn again"


def test_the_key_counts_before_the_request():
    crowd = Crowd(rows=16)
    busy = [crowd.comes(request, owner="a") for request in range(1, 17)]
    crowd.all_enter()
    crowd.comes(17, owner="a")
    large = crowd.many(4, request=100, owner="b")
    crowd.ends(*busy[:5])
    assert crowd.all_enter() == large[:3], "the other's request has no row, but its key has eleven"


def test_the_same_number_in_two_frontends_or_under_two_keys_is_two_requests():
    crowd = Crowd(rows=8)
    crowd.many(7, request=1)
    assert len(crowd.all_enter()) == 7
    assert crowd.comes(request=1) and crowd.all_enter() == []
    other = crowd.comes(request=1, peer="g")
    assert crowd.all_enter() == [other]


def test_replays_come_first_and_the_oldest_of_them():
    crowd = Crowd(rows=4)
    new = crowd.comes(owner="a")
    later = crowd.comes(owner="b", attempt=1, arrival=-1)
    former = crowd.comes(owner="b", attempt=3, arrival=-2)
    assert crowd.all_enter() == [former, later, new]


def test_replays_of_a_large_request_leave_the_kept_rows_to_others():
    crowd = Crowd(rows=16)
    replays = crowd.many(100, request=1, attempt=1)
    new = crowd.comes()
    assert crowd.all_enter() == [*replays[:14], new]


def test_a_request_that_is_alone_has_all_but_the_kept_rows():
    crowd = Crowd()
    crowd.many(1024, request=1)
    assert len(crowd.all_enter()) == 256 - places_kept(256) == 224
    assert crowd.queue.next(memory_is_scarce=False) is None


def test_many_requests_that_are_alone_have_all_rows():
    crowd = Crowd()
    crowd.many(300)
    assert len(crowd.all_enter()) == 256


def test_of_the_kept_rows_each_has_a_few():
    crowd = Crowd()
    crowd.many(300, request=1)
    crowd.all_enter()
    crowd.many(20, request=2)
    assert len(crowd.all_enter()) == few_of(256) == 8


def test_an_owner_beyond_its_part_gets_none_of_the_kept_rows():
    crowd = Crowd(rows=16)
    crowd.many(14, owner="a")
    crowd.all_enter()
    (other,) = crowd.many(1, owner="b")
    assert crowd.all_enter() == [other]
    crowd.many(5, owner="a")
    assert crowd.all_enter() == [], "two owners: eight rows each, and this one has 14"
    crowd.ends(other)
    assert len(crowd.all_enter()) == 2, "it is alone again"


def test_while_memory_is_scarce_it_is_for_those_who_have_few_rows():
    crowd = Crowd()
    large = crowd.many(50, request=1)
    for _ in range(few_of(256)):
        assert crowd.enters(memory_is_scarce=True) is not None
    assert crowd.enters(memory_is_scarce=True) is None
    small = crowd.comes(request=2)
    assert crowd.enters(memory_is_scarce=True) == small
    assert crowd.enters() == large[few_of(256)]


@pytest.mark.parametrize(("places", "kept"), [(1, 0), (3, 0), (4, 1), (8, 1), (16, 2), (256, 32), (1024, 128)])
def test_what_is_kept_is_an_eighth(places, kept):
    assert places_kept(places) == kept


def test_one_request_does_not_fill_the_queue():
    crowd = Crowd(places=1024)
    assert crowd.many(1100, request=1).count(None) == 1100 - 896
    others = crowd.many(40, request=2)
    assert others[32:] == [None] * 8 and None not in others[:32]
    waiting = Waiting(RowKey("f", 1), attrs.evolve(OPENING, request=1), 1)
    refusal = crowd.queue.refusal(waiting)
    assert refusal.code == "queue_full" and refusal.retry_after_s and "896 of them of this request" in refusal.message


def test_one_key_does_not_fill_the_queue():
    crowd = Crowd(places=64)
    assert crowd.many(100, owner="a").count(None) == 100 - 56
    assert crowd.comes(owner="b") is not None
    assert crowd.many(100).count(None) == 100 - 7, "those without a key are many: each is measured by itself"
    refusal = crowd.queue.refusal(Waiting(RowKey("f", 999), attrs.evolve(OPENING, owner="c"), 1))
    assert refusal.message.startswith("64 generations are waiting already; ")


def test_whoever_leaves_the_queue_gives_its_place_back():
    crowd = Crowd(places=4)
    first = crowd.many(4)
    assert crowd.comes() is None
    crowd.queue.discard(RowKey("f", first[1]))
    crowd.queue.discard(RowKey("f", first[1]))
    last = crowd.comes()
    assert crowd.all_enter() == [first[0], first[2], first[3], last]


def test_when_the_route_is_gone_nobody_has_a_row():
    crowd = Crowd(rows=4)
    crowd.many(4, request=1)
    crowd.all_enter()
    crowd.ends_all()
    crowd.queue.check()
    assert len(crowd.all_enter()) == 1
    for waiting in list(crowd.queue):
        crowd.queue.discard(waiting.key)
    crowd.ends_all()
    assert not crowd.queue._requests and not crowd.queue._owners


@pytest.mark.parametrize("seed", range(4))
def test_no_request_starves(seed):
    """Of each request that waits without a row, one generation enters before so many rows have ended, whoever comes.

    A row lasts until `lasts` more have ended, at most. After that long, the owner has no row but those it was given
    since, to generations that were there before; and of two owners, each is given no more than every other row.
    """
    chance = random.Random(seed)
    crowd, lasts = Crowd(rows=chance.choice([2, 5, 16]), places=64), 20
    running: dict[int, int] = {}  # session -> when its row ends at the latest
    since: dict[tuple[str, int], tuple[int, int]] = {}  # request without a row -> (rows ended, those before it)
    request_of: dict[int, tuple[str, int]] = {}
    served = 0
    for ended in range(1, 601):
        for _ in range(chance.randrange(4)):
            owner, request = chance.choice("abb"), chance.choice([1, chance.randrange(2, 10_000)])
            before = len(crowd.queue)
            session = crowd.comes(request, owner=owner)
            if session is not None:
                request_of[session] = (owner, request)
                if not any(request_of[other] == (owner, request) for other in running):
                    since.setdefault((owner, request), (ended, before))
        while (session := crowd.enters()) is not None:
            running[session] = ended + chance.randrange(1, lasts)
            began, before = since.pop(request_of[session], (ended, 0))
            assert ended - began <= 2 * (lasts + before), "it waited too long"
            served += 1
        if not running:
            continue  # nobody has come yet
        due = min(running, key=running.__getitem__)
        crowd.ends(due)
        del running[due]
        for began, before in since.values():
            assert ended - began <= 2 * (lasts + before), "it waits too long"
        if not any(request_of[other] == request_of[due] for other in running):
            line = [w.key.session for w in crowd.queue if request_of[w.key.session] == request_of[due]]
            if line:
                since[request_of[due]] = (ended, len(crowd.queue))
    assert served > 400


def test_looking_again_costs_nothing_while_nothing_changes(monkeypatch):
    crowd = Crowd(rows=16)
    crowd.many(100, request=1)
    crowd.all_enter()
    looks = []
    monkeypatch.setattr(Ranking, "first", lambda *_: looks.append(1))
    for _ in range(10):
        assert crowd.queue.next(memory_is_scarce=False) is None
    assert looks == []


@pytest.mark.parametrize("seed", range(3))
def test_a_ranking_is_a_sorted_list_of_its_latest_keys(seed):
    chance, ranking, plain = random.Random(seed), Ranking(), {}
    for _ in range(1000):
        item = chance.randrange(40)
        if chance.random() < 0.6:
            plain[item] = (chance.randrange(10), item)
            ranking.put(item, plain[item])
        else:
            plain.pop(item, None)
            ranking.drop(item)
        odd = [item for item in plain if item % 2]
        assert ranking.first() == min(plain, key=plain.get, default=None)
        assert ranking.first(lambda item: item % 2) == min(odd, key=plain.get, default=None)
        assert len(ranking) == len(plain) and len(ranking._heap) <= 2 * len(plain) + 200
