"""Every number, text and column that can be said has a limit, also in a class that is new tomorrow."""

import random
import typing

import attrs
import msgpack
import pytest

from hydra.protocol import codec, limits
from hydra.protocol.batch import RowOpening
from hydra.protocol.faults import MessageTooBig, TheyBrokeTheRules
from hydra.protocol.ids import TERM_MAX, Epoch
from hydra.protocol.messages import Message
from hydra.protocol.messages.generations import Open, Tokens
from hydra.protocol.messages.membership import Beacon, Hello, SayHello, Welcome
from hydra.protocol.messages.models import LoadModel, StatusRequest
from hydra.protocol.messages.plans import Activate
from tests.extremes import Extremes, bent, leaves

KINDS = typing.get_args(Message)
BEYOND = {int: (-1, 2**63, 2**64 - 1), float: (float("nan"), float("inf"), float("-inf"))}
SEED = ("params", "seed")  # any 64 bits


def sample(kind: type) -> typing.Any:
    """Some message of this class that its reader takes, with something in as many of its lists as can be had."""
    best: tuple[int, typing.Any] = (-1, None)
    extremes = Extremes(random.Random(3))
    for _ in range(400):
        message = extremes.value(kind)
        try:
            (frame,) = codec.encode("somebody", "me", message)
            codec.decode([frame])
        except (MessageTooBig, TheyBrokeTheRules):
            continue
        best = max(best, (len(frame), message), key=lambda pair: pair[0])
    assert best[1] is not None, f"no {kind.__name__} in 400 tries"
    return best[1]


def refused(kind: type, fields: typing.Any) -> bool:
    frame = msgpack.packb((1, "somebody", "me", kind.__name__, fields))
    try:
        codec.decode([frame])
    except TheyBrokeTheRules:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_field_takes_a_value_beyond_all_reason(kind):
    fields = msgpack.unpackb(msgpack.packb(codec.converter.unstructure(sample(kind)), default=lambda v: v.item()))
    assert not refused(kind, fields)
    for path, value in leaves(fields):
        wild = BEYOND.get(type(value), ())
        if isinstance(value, str):
            wild = ("x" * (limits.TEXT_MAX + 1),)
        if isinstance(value, bytes) and kind in (Open, Tokens) and path != ("logprobs",) and "logprobs" not in path:
            wild = (b"\xff" * max(4, len(value)),)
        for other in wild:
            if path[-2:] != SEED or other < 0:
                assert refused(kind, bent(fields, path, other)), (path, other)


GOOD = {
    Hello: Hello(
        node_id="w1", role="worker", version=6, auth="", host="h", pid=1, term_seen=0,
        pipeline_addr="tcp://127.0.0.1:5",
    ),
    Welcome: Welcome(generation=1, term=1, heartbeat_s=0.5, results_addr="tcp://127.0.0.1:5"),
    SayHello: SayHello(term=1, generation=1),
    Beacon: Beacon(term=1, number=1, counter=1),
    Activate: Activate(
        route=1, epoch=Epoch(1, 1), kv_blocks=1, next_addr="tcp://127.0.0.1:5", credits=3, stage_index=0, n_stages=1
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Hello, "term_seen", 2**32),
        (Hello, "term_seen", TERM_MAX + 1),
        (Hello, "pid", 2**31),
        (Hello, "node_id", ""),
        (Hello, "node_id", "two\nlines"),
        (Hello, "node_id", "x" * 256),
        (Hello, "pipeline_addr", "nonsense"),
        (Hello, "pipeline_addr", "tcp://*:5"),
        (Hello, "pipeline_addr", "tcp://-:5"),
        (Hello, "pipeline_addr", "tcp://127.0.0.1:65536"),
        (Hello, "pipeline_addr", "tcp://127.0.0.1"),
        (Hello, "store_addr", "tcp://127.0.0.1:5,hub:org/name@x"),
        (Hello, "family", "x" * 256),
        (Welcome, "heartbeat_s", 0.0),
        (Welcome, "term", 2**31),
        (SayHello, "term", 2**40),
        (Beacon, "term", 2**40),
        (Activate, "credits", 2**40),
        (Activate, "credits", 0),
        (Activate, "kv_blocks", 2**31),
        (Activate, "epoch", {"term": 2**32, "number": 1}),
        (Activate, "epoch", {"term": 1, "number": 2**32}),
        (Activate, "route", 2**32),
    ],
)
def test_what_comes_after_is_narrower_than_a_count(kind, field, value):
    fields = codec.converter.unstructure(GOOD[kind])
    assert not refused(kind, fields) and refused(kind, fields | {field: value})


@pytest.mark.parametrize("name", ["session", "attempt"])
def test_what_travels_in_a_column_fits_one(name):
    fields = msgpack.unpackb(msgpack.packb(codec.converter.unstructure(sample(Open))))
    assert not refused(Open, fields | {name: 2**31 - 1}) and refused(Open, fields | {name: 2**31})
    opening = codec.converter.get_structure_hook(RowOpening)
    with pytest.raises(ValueError, match="limits"):
        opening({"row": 2**31, "attempt": 0, "params": fields["params"], "prompt_tokens": 1}, RowOpening)


def test_nothing_is_said_that_its_reader_would_refuse():
    with pytest.raises(MessageTooBig, match="LoadModel"):
        codec.encode("planner", "asks", LoadModel(ask=1, model_path="x" * 5000))
    with pytest.raises(MessageTooBig, match="StatusRequest"):
        codec.encode("status", "asks", StatusRequest(ask=2**63))


def test_limits_name_fields_that_there_are():
    for kind, fields in limits.FIELDS.items():
        assert set(fields) <= {field.name for field in attrs.fields(kind)}, kind
