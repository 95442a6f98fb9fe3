"""The store lane's sentences survive the wire, and bytes that are none of them are refused before anything is made."""

import contextlib
import os
import random

import pytest

from hydra.protocol.codec import pack
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.refusal import Refusal
from hydra.protocol.store_lane import (
    ANSWER_BYTES_MAX,
    ASK_BYTES_MAX,
    CHUNK_BYTES_MAX,
    MESSAGE_LENGTH_MAX,
    STORE_VERSION,
    ChunkRefused,
    ChunkReply,
    ChunkRequest,
    decode_answer,
    decode_ask,
    encode_answer,
    encode_ask,
)

ASK = ChunkRequest(number=7, auth="secret", fingerprint="ab" * 32, file="model.safetensors", offset=1 << 40, length=100)
FIELDS = {"number": 7, "auth": "", "fingerprint": "ab", "file": "x", "offset": 0, "length": 1}
TOLD = {"number": 1, "file_bytes": 10}


def test_a_question_survives_and_keeps_its_token_to_itself():
    assert decode_ask(encode_ask(ASK)) == ASK
    assert "secret" not in repr(ASK)


@pytest.mark.parametrize("size", [0, 1, 70_000, CHUNK_BYTES_MAX])
def test_a_chunk_survives_without_a_copy(size):
    data = bytearray(os.urandom(size))
    told = ChunkReply(number=3, file_bytes=1 << 40, data=data)
    frames = encode_answer(told)
    assert frames[1] is data and sum(map(len, frames)) <= ANSWER_BYTES_MAX
    assert decode_answer(frames) == told


def test_a_refusal_survives_and_is_cut_to_fit():
    refusal = Refusal(code="bad_model", message="€" * 100_000, param="file", retry_after_s=1.0)
    frames = encode_answer(ChunkRefused(number=3, refusal=refusal))
    assert len(frames[0]) <= ASK_BYTES_MAX
    back = decode_answer(frames)
    assert back.refusal == Refusal(code="bad_model", message="€" * MESSAGE_LENGTH_MAX, param="file", retry_after_s=1.0)


def asked(**changes):
    return [pack((STORE_VERSION, {**FIELDS, **changes}))]


BROKEN_ASKS = {
    "nothing": [],
    "two frames": [*asked(), b""],
    "empty": [b""],
    "not msgpack": [b"\xc1\xff"],
    "too big": [pack((STORE_VERSION, {**FIELDS, "auth": "x" * ASK_BYTES_MAX}))],
    "another version": [pack((STORE_VERSION + 1, FIELDS))],
    "true as a version": [pack((True, FIELDS))],
    "no map": [pack((STORE_VERSION, list(FIELDS.values())))],
    "a key too many": asked(path="/etc/passwd"),
    "a key too few": [pack((STORE_VERSION, {k: v for k, v in FIELDS.items() if k != "file"}))],
    "an offset below 0": asked(offset=-1),
    "an offset beyond everything": asked(offset=(1 << 62) + 1),
    "cut short": [pack((STORE_VERSION, FIELDS))[:-1]],
    "a length below 0": asked(length=-1),
    "a huge length": asked(length=CHUNK_BYTES_MAX + 1),
    "a length as text": asked(length="1"),
    "a length as a float": asked(length=1.0),
    "true as an offset": asked(offset=True),
    "bytes as a name": asked(file=b"x"),
    "a long name": asked(file="x" * 256),
    "a long fingerprint": asked(fingerprint="a" * 256),
}


@pytest.mark.parametrize("frames", BROKEN_ASKS.values(), ids=BROKEN_ASKS)
def test_what_is_no_question_is_refused(frames):
    with pytest.raises(TheyBrokeTheRules):
        decode_ask(frames)


def test_the_broken_questions_are_broken_by_one_thing_each():
    assert decode_ask(asked()) == ChunkRequest(**FIELDS)


BROKEN_ANSWERS = {
    "nothing": [],
    "a head alone": [pack((STORE_VERSION, "told", TOLD))],
    "three frames": [pack((STORE_VERSION, "told", TOLD)), b"", b""],
    "a huge chunk": [pack((STORE_VERSION, "told", TOLD)), bytes(CHUNK_BYTES_MAX + 1)],
    "a huge head": [pack((STORE_VERSION, "told", {**TOLD, "more": "x" * ASK_BYTES_MAX})), b""],
    "an unknown kind": [pack((STORE_VERSION, "sold", TOLD)), b""],
    "a refusal with bytes": [pack((STORE_VERSION, "refused", TOLD)), b""],
    "an unknown code": [
        pack((STORE_VERSION, "refused", {"number": 1, "refusal": {"code": "because", "message": "", "param": None}}))
    ],
    "a size below 0": [pack((STORE_VERSION, "told", {**TOLD, "file_bytes": -1})), b""],
}


@pytest.mark.parametrize("frames", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS)
def test_what_is_no_answer_is_refused(frames):
    with pytest.raises(TheyBrokeTheRules):
        decode_answer(frames)


def test_noise_is_refused_and_nothing_else_happens():
    rng = random.Random(3)
    whole = (encode_ask(ASK)[0], encode_answer(ChunkReply(number=1, file_bytes=9, data=b"abc"))[0])
    for _ in range(2000):
        frame = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 4)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        for decode, frames in ((decode_ask, [bytes(frame)]), (decode_answer, [bytes(frame), b"abc"])):
            with contextlib.suppress(TheyBrokeTheRules):
                decode(frames)
