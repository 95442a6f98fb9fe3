"""The command lane's wire form: every sentence comes back whole, and nonsense is one kind of error."""

import contextlib
import math
import random
import types
import typing

import attrs
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra.protocol import codec
from hydra.protocol.batch import Logprobs, int32
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.faults import MessageTooBig, TheyBrokeTheRules
from hydra.protocol.ids import Epoch, NodeId
from hydra.protocol.limits import PATH_MAX
from hydra.protocol.messages import Message
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Tokens
from hydra.protocol.messages.journal import JournalEntries, JournalEntry
from hydra.protocol.messages.membership import Beacon, DeviceOffer, Hello, SayHello
from hydra.protocol.messages.models import LoadModel
from hydra.protocol.messages.plans import Activate, LoadSlice
from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import DecoderSpec, decoder_of, plain_decoder, plain_layer
from hydra.protocol.model.encoding import BF16, NAMED_ENCODINGS, Encoding
from hydra.protocol.model.layer_spec import LayerSpec, MoeSpec, NormSpec, SoftmaxAttentionSpec
from hydra.protocol.model.model_spec import ModelSpec, Place, StoredFile, TensorRange
from hydra.protocol.model.part_size import PartSize
from hydra.protocol.model.source import Directory, HubCommit, Peers
from hydra.protocol.range_list import fold
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import SamplingParams

KINDS = typing.get_args(Message)
FLOATS = st.floats(0.0625, 1.0, width=32)
COUNTS = st.integers(0, 2**31 - 1)
HOSTS = st.text("abc-.~ é", max_size=12)
ADDRS = st.sampled_from(["tcp://127.0.0.1:5", "tcp://[fe80::1]:65535", "tcp://a-host.b:1", "mem://w1:20001"])


def logprobs(n, k):
    rng = np.random.default_rng(n)
    return Logprobs(
        chosen=rng.random(n, dtype=np.float32),
        top_ids=int32(rng.integers(0, 9, (n, k))),
        top=rng.random((n, k), dtype=np.float32),
    )


def strategy(kind):
    """Any value of an annotated type; the few classes with rules of their own get what keeps them."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    simple = {int: COUNTS, float: FLOATS, bool: st.booleans(), str: st.text(max_size=12)}
    if kind in simple:
        return simple[kind]
    if kind is NodeId:
        return st.text("abc-.~ é", min_size=1, max_size=12)
    if isinstance(kind, typing.NewType):
        return strategy(kind.__supertype__)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is np.ndarray:
        return st.lists(COUNTS, max_size=5).map(int32)
    if kind == Encoding:
        return st.sampled_from(list(NAMED_ENCODINGS.values()))
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if arg is type(None) else strategy(arg) for arg in args])
    if origin is tuple:
        return (
            st.lists(strategy(args[0]), max_size=3).map(tuple)
            if args[1:] == (...,)
            else st.tuples(*[strategy(arg) for arg in args])
        )
    if kind is Logprobs:
        return st.builds(logprobs, st.integers(0, 4), st.integers(0, 3))
    fields = {field.name: strategy(field.type) for field in attrs.fields(attrs.resolve_types(kind))}
    special = {
        SamplingParams: {"logprobs": st.none() | st.integers(0, 20)},
        Open: {"prompt_tokens": st.just(0)},
        LoadModel: {"replicas": st.integers(1, 64)},
        TensorRange: {"file": st.just("model.safetensors")},
        StoredFile: {"file": st.just("model.safetensors")},
        Hello: {"host": HOSTS},
        DeviceOffer: {"device": st.sampled_from(["cpu", "cuda:0"]), "name": HOSTS},
        Activate: {"credits": st.integers(1, 99)},
        LoadSlice: {"block_size": st.integers(1, 99), "first_layer": st.just(0), "end_layer": st.just(1)},
        Endpoint: {"addr": ADDRS, "public_key": HOSTS},
        HubCommit: {
            "repo": st.just("org/m"),
            "commit": st.sampled_from(["main", "0" * 40]),
            "folder": st.sampled_from(["", "Q4_K_M", "a/b"]),
        },
        SoftmaxAttentionSpec: dict.fromkeys(("n_heads", "n_kv_heads", "head_dim"), st.integers(1, 99)),
        PagedKvSpec: dict.fromkeys(("n_heads", "head_dim"), st.integers(1, 99)),
        MoeSpec: dict.fromkeys(("n_experts", "top_k"), st.integers(1, 99)),
        JournalEntries: {"first": st.integers(1, 99)},
        JournalEntry: dict.fromkeys(("actor", "node", "response_id"), HOSTS),
    }
    if kind is ModelSpec:  # as many sizes as layers
        size = strategy(PartSize)
        spec = st.builds(ModelSpec, **fields)
        return st.builds(lambda spec, size: attrs.evolve(spec, layer_sizes=(size,) * spec.n_layers), spec, size)
    if kind is DecoderSpec:  # the index of each layer must be right
        layers = st.lists(strategy(LayerSpec), min_size=1, max_size=3)
        return st.builds(decoder_of, layers, strategy(NormSpec))
    return st.builds(kind, **(fields | special.get(kind, {})))


def tokens(n):
    column = st.lists(COUNTS, min_size=n, max_size=n).map(int32)
    names = ("session", "attempt", "position", "token", "cached")
    finish = st.lists(st.integers(0, 2), min_size=n, max_size=n).map(int32)
    told = st.none() | st.builds(logprobs, st.just(n), st.integers(0, 3))
    return st.builds(Tokens, **dict.fromkeys(names, column), finish=finish, logprobs=told)


SENTENCES = {kind: strategy(kind) for kind in KINDS if kind is not Tokens} | {Tokens: st.integers(0, 8).flatmap(tokens)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_every_sentence_comes_back_whole(kind, data):
    message = data.draw(SENTENCES[kind])
    there = codec.decode(codec.encode("broker", "sessions", message, 7))
    assert there == codec.Envelope("broker", "sessions", message, 7)


def sentence(name, fields, to="status", sender="parent", number=1):
    return [msgpack.packb([number, to, sender, name, fields])]


GOOD_CLOSE = {"session": 1, "attempt": 2}
REFUSED = {
    "no frame": [],
    "two frames": sentence("Close", GOOD_CLOSE) * 2,
    "empty": [b""],
    "trailing bytes": [sentence("Close", GOOD_CLOSE)[0] + b"\0"],
    "not five": [msgpack.packb([1, "status", "parent", "Close"])],
    "a negative number": sentence("Close", GOOD_CLOSE, number=-1),
    "text for the count": sentence("Close", GOOD_CLOSE, number="1"),
    "bool for the count": sentence("Close", GOOD_CLOSE, number=True),
    "unknown class": sentence("Shutdown", {}),
    "unhashable class": sentence([], {}),
    "a class outside the union": sentence("Refusal", {"code": "timeout", "message": ""}),
    "text for a number": sentence("Close", {"session": "1", "attempt": 2}),
    "bool for a number": sentence("Close", {"session": True, "attempt": 2}),
    "float for a number": sentence("Close", {"session": 1.0, "attempt": 2}),
    "null for a number": sentence("Close", {"session": None, "attempt": 2}),
    "missing key": sentence("Close", {"session": 1}),
    "unknown key": sentence("Close", GOOD_CLOSE | {"force": True}),
    "fields as a list": sentence("Close", [1, 2]),
    "fields as pairs": sentence("ModelsChanged", []),
    "text for a tuple": sentence("ModelsChanged", {"models": "abc"}),
    "int for a float": sentence("ReadyTold", {"ask": 1, "ready": True, "why": "", "retry_after_s": 1}),
    "actor as a number": sentence("Close", GOOD_CLOSE, to=7),
    "actor without a name": sentence("Close", GOOD_CLOSE, sender=""),
    "literal outside the list": sentence("Reopen", {"session": 1, "attempt": 1, "why": "mood", "death": False}),
    "an extension": sentence("SayHello", {"term": msgpack.ExtType(5, b"xx")}),
    "a timestamp": sentence("SayHello", {"term": msgpack.Timestamp(0)}),
    "deep nesting": [b"\x91" * 100_000],
    "a long array": [b"\xdd\xff\xff\xff\xff"],
    "negative epoch": sentence("Ready", {"route": 1, "epoch": {"term": -1, "number": 0}}),
    "too many bytes": [bytes(codec.CONTROL_BYTES_MAX + 1)],
}


@pytest.mark.parametrize("frames", REFUSED.values(), ids=REFUSED.keys())
def test_near_misses_are_misses(frames):
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(frames)


def fields_of(message):
    return msgpack.unpackb(codec.encode("status", "parent", message)[0])[4]


OPEN = Open(
    session=1, attempt=1, model_id="m", history=[1, 2], prompt_tokens=2, max_tokens=5, params=SamplingParams(),
    stop_ids=(),
)  # fmt: skip
EIGHT = Tokens(**dict.fromkeys(("session", "attempt", "position", "token", "cached"), range(8)), finish=[0] * 8)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (OPEN, {"history": b"123"}),
        (OPEN, {"history": [1, 2]}),
        (OPEN, {"prompt_tokens": 3}),
        (OPEN, {"max_tokens": -1}),
        (OPEN, {"request": -1}),
        (OPEN, {"owner": "x" * 65}),
        (EIGHT, {"token": b"\0" * 4}),
        (EIGHT, {"logprobs": [1, b"\0" * 4, b"\0" * 4, b"\0" * 4]}),
        (EIGHT, {"logprobs": [2, b"\0" * 32, b"\0" * 32, b"\0" * 64]}),
        (EIGHT, {"logprobs": [True, b"\0" * 32, b"\0" * 32, b"\0" * 32]}),
    ],
)
def test_columns_and_counts_are_checked(message, change):
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence(type(message).__name__, fields_of(message) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": math.nan},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"seed": -1},
        {"logprobs": 21},
        {"logit_bias": [[1, math.nan]]},
        {"logit_bias": [[1, 2.0, 3.0]]},
        {"temperature": 1},
    ],
)
def test_sampling_ranges_are_checked_again(change):
    fields = fields_of(OPEN)
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("Open", fields | {"params": fields["params"] | change}))


EXPERT = TensorRange(
    name="model.layers.47.mlp.experts.127.gate_proj.weight", file="model-00001-of-00016.safetensors", offset=2**40,
    length=2**22, encoding=BF16, shape=(768, 2048), place=Place(role="expert_gate_up", layer=47, expert=127),
)  # fmt: skip
SLICE = LoadSlice(
    route=1, epoch=Epoch(1, 1), dtype="bfloat16", first_layer=0, end_layer=48, tensors=(EXPERT,),
    sources=(Directory("/m"), HubCommit("org/m", "0123"),    Peers((Endpoint("tcp://c:1"),))), block_size=16,
    kv_memory_bytes=1,
    spec=ModelSpec(
        architecture="Qwen3MoeForCausalLM", fingerprint="f" * 64, hidden=2048, vocab=151_936,
        max_positions=40_960, tied=False,
        decoder=plain_decoder(48, plain_layer(n_heads=32, n_kv_heads=4, head_dim=128, intermediate=6144)),
        stored_dtype="bfloat16", layer_sizes=(PartSize(1, 2),) * 48, embedding_size=PartSize(1, 2),
        head_size=PartSize(1, 2), norm_size=PartSize(1, 2),
        bos_id=None, eos_ids=(),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "/m",
        {},
        {"path": "/m"},
        {"kind": "Endpoint", "addr": "tcp://c:1", "public_key": ""},
        {"kind": "Peers", "path": "/m"},
        {"kind": "Directory", "path": 1},
        {"kind": "Directory", "path": "/m", "repo": "org/m", "commit": "0123"},
        {"kind": "HubCommit", "repo": "org/m"},
        {"kind": "HubCommit", "repo": "org/m", "commit": ""},
        {"kind": "HubCommit", "repo": "org/../m", "commit": "0123"},
        {"kind": "HubCommit", "repo": "org/m", "commit": "../0123"},
        {"kind": "HubCommit", "repo": "org/m", "commit": "0123", "folder": "a/../b"},
        {"kind": "HubCommit", "repo": "org/m", "commit": "0123", "folder": "/a"},
        {"kind": "HubCommit", "repo": "org/m", "commit": "0123", "folder": "a\\b"},
        {"kind": "HubCommit", "repo": "org/m@0123", "commit": "4567"},
        {"kind": "Peers", "endpoints": "tcp://c:1"},
        {"kind": "Peers", "endpoints": ["tcp://c:1"]},
        {"kind": "Peers", "endpoints": [{"addr": "tcp://c:1,hub:org/m@0123", "public_key": ""}]},
        {"kind": "Peers", "endpoints": [{"addr": "tcp://c:1", "public_key": "\n"}]},
        {"kind": "Peers", "endpoints": [{"addr": "tcp://c:1", "public_key": ""}] * 257},
    ],
)  # fmt: skip
def test_a_source_is_one_of_three_kinds_and_nothing_that_is_parsed_again(source):
    fields = codec.converter.unstructure(SLICE)
    assert codec.decode(sentence("LoadSlice", fields)).message.sources == SLICE.sources
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"sources": [source]}))


def test_an_endpoint_travels_with_its_key():
    ready = Activate(
        route=1, epoch=Epoch(1, 1), kv_blocks=1, next_addr=Endpoint("tcp://c:1", "k" * 40), credits=1, stage_index=0,
        n_stages=1,
    )  # fmt: skip
    assert codec.decode(codec.encode("stage", "planner", ready)).message.next_addr == Endpoint("tcp://c:1", "k" * 40)
    assert str(ready.next_addr) == "tcp://c:1", "what people and the status read is the address alone"


def test_one_worker_can_be_told_all_of_a_model_with_128_experts_in_48_layers():
    whole = attrs.evolve(SLICE, tensors=(EXPERT,) * (48 * (3 * 128 + 9)))
    assert codec.decode(codec.encode("stage", "planner", whole)).message == whole


def mixed(layer: int):
    """As Gemma 3: another window and rope in every sixth layer; and the first layers without experts."""
    plain = plain_layer(n_heads=32, n_kv_heads=4, head_dim=128, intermediate=6144)
    attention = attrs.evolve(plain.attention, window=0 if layer % 6 == 5 else 1024)
    moe = MoeSpec(n_experts=128, top_k=8, intermediate=768, activation="silu", normalised=True)
    return attrs.evolve(plain, attention=attention, feed_forward=plain.feed_forward if layer < 3 else moe)


def test_a_hundred_layers_of_four_kinds_are_small_and_shared():
    decoder = decoder_of(map(mixed, range(120)), SLICE.spec.decoder.norm)
    spec = attrs.evolve(SLICE.spec, decoder=decoder, layer_sizes=(PartSize(193_000_000, 386_000_000),) * 120)
    message = attrs.evolve(SLICE, spec=spec, tensors=())
    assert len(spec.decoder.kinds) == 3 and [spec.decoder.layer(i) for i in range(120)] == list(map(mixed, range(120)))
    frames = codec.encode("stage", "planner", message)
    heard = codec.decode(frames).message
    assert heard == message and len(frames[0]) < 4000
    assert heard.spec.decoder.layer(20) is heard.spec.decoder.layer(119 - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_kinds": [1] * 48},
        {"layer_kinds": [0] * 47 + [-1]},
        {"layer_kinds": []},
        {"kinds": []},
        {"kinds": [{"kind": "LayerSpec"}]},
        {"layer_kinds": [0] * 47},
    ],
)
def test_a_decoder_says_what_each_of_its_layers_is(change):
    fields = fields_of(SLICE)
    spec = fields["spec"]
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"spec": spec | {"decoder": spec["decoder"] | change}}))
    twice = spec["decoder"]["kinds"] * 2
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"spec": spec | {"decoder": spec["decoder"] | {"kinds": twice}}}))


@pytest.mark.parametrize("half", [{"kind": "Recurrent"}, {"kind": "NormSpec"}, {"kind": 7}, {}, [], "DenseSpec"])
def test_the_kind_of_a_layer_is_one_of_those_there_are(half):
    fields = fields_of(SLICE)
    decoder = fields["spec"]["decoder"]
    (layer,) = decoder["kinds"]
    assert layer["feed_forward"]["kind"] == "DenseSpec"
    other = layer["feed_forward"] | half if isinstance(half, dict) and half else half
    spec = fields["spec"] | {"decoder": decoder | {"kinds": [layer | {"feed_forward": other}]}}
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"spec": spec}))


@pytest.mark.parametrize("change", [{"first_layer": 48}, {"end_layer": 49}, {"end_layer": 2**40}, {"block_size": 0}])
def test_a_slice_lies_within_its_model(change):
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields_of(SLICE) | change))


ROW = ["n", "f", 0, 8, "F32", [2], ["down", 0, 0, None, "values", ""]]


@pytest.mark.parametrize(
    "row",
    [
        {"name": "n"},
        ["n", "f"],
        ROW[:-1],
        [*ROW, 1],
        [*ROW[:-1], "down"],
        [*ROW[:-1], ["down", 0, 0]],
        [*ROW[:-1], ["down", 0, -1, None, "values", ""]],
        [*ROW[:-1], ["down", -1, 0, None, "values", ""]],
        [*ROW[:-1], ["down", 0, 0, -1, "values", ""]],
        [*ROW[:-1], ["down", True, 0, None, "values", ""]],
        [*ROW[:-1], ["sideways", 0, 0, None, "values", ""]],
        ["n", "../f", *ROW[2:]],
        ["n", "f", -1, *ROW[3:]],
        [7, *ROW[1:]],
        [*ROW[:4], "float32", *ROW[5:]],
        [*ROW[:4], "Q9_Z", *ROW[5:]],
        [*ROW[:4], {"dtype": "float32"}, *ROW[5:]],
        [*ROW[:4], None, *ROW[5:]],
    ],
)
def test_rows_of_ranges_are_checked(row):
    fields = fields_of(SLICE)
    codec.decode(sentence("LoadSlice", fields | {"tensors": fold([ROW])}))
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"tensors": folded(row)}))


def folded(row: object) -> object:
    """Also what `fold` itself would not write."""
    try:
        return fold([row])
    except (TypeError, ValueError):
        return [["f"], ["F32"], [["down", "values", ""]], [row]]


@pytest.mark.parametrize(
    "change", [{"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"min_p": 2.0}, {"top_k": 1.0}]
)
def test_default_sampling_is_checked(change):
    fields = fields_of(SLICE)
    default = fields["spec"]["default_sampling"]
    codec.decode(
        sentence("LoadSlice", fields | {"spec": fields["spec"] | {"default_sampling": default | {"top_p": 0.9}}})
    )
    with pytest.raises(TheyBrokeTheRules):
        codec.decode(sentence("LoadSlice", fields | {"spec": fields["spec"] | {"default_sampling": default | change}}))


def test_what_we_say_is_normalised():
    params = SamplingParams(temperature=1, logit_bias=((5, 2),), seed=2**64 - 1)
    said = attrs.evolve(OPEN, params=params, max_tokens=np.int64(7))
    heard = codec.decode(codec.encode("broker", "sessions", said)).message
    assert type(heard.params.temperature) is float and type(heard.params.logit_bias[0][1]) is float
    assert heard.max_tokens == 7 and heard.params.seed == 2**64 - 1
    odd = OpenRefused(session=1, attempt=1, refusal=Refusal(code="bad_model", message="\ud800"))
    assert codec.decode(codec.encode("sessions", "broker", odd)).message.refusal.message == "?"


def test_a_sentence_beyond_the_lane_is_not_said():
    with pytest.raises(MessageTooBig):
        codec.encode("broker", "sessions", attrs.evolve(OPEN, history=np.zeros(codec.CONTROL_BYTES_MAX // 4, np.int32)))


@pytest.mark.parametrize(
    "message",
    [
        attrs.evolve(OPEN, stop_ids=tuple(range(codec.ARRAY_ITEMS_MAX + 1))),
        attrs.evolve(OPEN, params=attrs.evolve(OPEN.params, logit_bias=((0, 1.0),) * (codec.ARRAY_ITEMS_MAX + 1))),
        attrs.evolve(OPEN, model_id="m" * (codec.STRING_BYTES_MAX + 1)),
        attrs.evolve(OPEN, max_tokens=1 << 64),
    ],
    ids=["a list", "a list in a list", "a string", "a number"],
)
def test_what_would_not_be_understood_is_not_said(message):
    with pytest.raises(MessageTooBig, match="a Open beyond"):
        codec.encode("broker", "sessions", message)
    most = attrs.evolve(OPEN, stop_ids=tuple(range(codec.ARRAY_ITEMS_MAX)), model_id="m" * PATH_MAX)
    assert len(codec.decode(codec.encode("broker", "sessions", most)).message.stop_ids) == codec.ARRAY_ITEMS_MAX


def test_a_refusal_of_something_endless_can_be_said():
    refusal = Refusal(code="bad_model", message=f"no directory {'x' * codec.CONTROL_BYTES_MAX}")
    (frame,) = codec.encode("sessions", "broker", OpenRefused(session=1, attempt=1, refusal=refusal))
    assert len(frame) < 50_000 and refusal.message.endswith("…")


def mutations(frame, rng, n):
    """The same frame with bytes flipped, cut or grown."""
    for _ in range(n):
        mutant = bytearray(frame)
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        cut = rng.randrange(len(mutant) + 1)
        yield bytes(rng.choice((mutant, mutant[:cut], mutant + mutant[cut:])))


def test_mutated_sentences_never_raise_anything_else():
    rng = random.Random(5)
    for message in (
        OPEN,
        EIGHT,
        SayHello(term=3, generation=1),
        Beacon(term=1, number=2, counter=3),
        Close(session=1, attempt=1),
    ):
        (frame,) = codec.encode("broker", "sessions", message)
        for mutant in mutations(frame, rng, 1000):
            with contextlib.suppress(TheyBrokeTheRules):
                codec.decode([mutant])


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(noise):
    with pytest.raises(TheyBrokeTheRules):
        codec.decode([noise])


def test_epochs_are_ordered():
    assert Epoch(1, 9) < Epoch(2, 0)
