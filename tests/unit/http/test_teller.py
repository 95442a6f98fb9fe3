"""One answer told: special tokens are in the text until it is shown, and stop strings wait for the least of tokens."""

import pytest

from hydra.http.answers import Answer
from hydra.http.openai_logprobs import chat_logprobs, text_logprobs
from hydra.http.openai_request import ApiRequest
from hydra.http.teller import Teller
from hydra.protocol.sampling import SamplingParams
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.fake_cluster import tokens_of
from tests.unit.text.tokenizer_zoo import byte_fallback, byte_level, save

EOT = "<|im_end|>"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return ModelTokenizer.load(save(tmp_path_factory.mktemp("words"), byte_level(), None))


@pytest.fixture(scope="module")
def piece_words(tmp_path_factory):
    """Of the sentencepiece kind."""
    return ModelTokenizer.load(save(tmp_path_factory.mktemp("words"), byte_fallback("first"), None))


def encode(words, text):
    return words.tokenizer.encode(text, add_special_tokens=False).ids


def tell(words, ids, *, size=1, kind="text", prompt=(), finish="length", **request):
    """The deltas of these tokens, `size` at a time."""
    sampling = SamplingParams(**{name: request.pop(name) for name in ("logprobs", "min_tokens") if name in request})
    asked = ApiRequest(kind=kind, model="m", sampling=sampling, **request)
    teller = Teller.of(asked, Answer(index=0, prompt=tuple(prompt), choice=0), words)
    deltas = []
    for at in range(0, len(ids), size):
        some = tuple(ids[at : at + size])
        logprob = -0.5 if sampling.logprobs is not None else None
        deltas.append(teller.tell(tokens_of(some, finish if at + size >= len(ids) else None, logprob=logprob)))
        if deltas[-1].finish:
            break
    return deltas


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("make", ["words", "piece_words"])
def test_a_special_token_is_left_out_of_what_is_shown_unless_asked_for(make, size, request):
    words = request.getfixturevalue(make)
    ids = encode(words, f"hello{EOT}there")
    assert text_of(tell(words, ids, size=size)) in ("hellothere", "hello there")
    shown = text_of(tell(words, ids, size=size, skip_special_tokens=False))
    assert EOT in shown and shown.replace(EOT, "") == text_of(tell(words, ids, size=size))


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize(
    ("stop", "shown", "with_stop"),
    [
        (EOT, "hello", f"hello{EOT}"),
        (f"lo{EOT}", "hel", f"hello{EOT}"),
        (f"{EOT}th", "hello", f"hello{EOT}th"),
        ("im_end", "hello", "helloim_end"),
    ],
)
def test_a_stop_string_may_be_or_hold_a_special_token(words, stop, shown, with_stop, size):
    ids = encode(words, f"hello{EOT}there")
    deltas = tell(words, ids, size=size, stop=(stop,))
    assert (text_of(deltas), deltas[-1].finish) == (shown, "stop")
    deltas = tell(words, ids, size=size, stop=(stop,), include_stop=True)
    assert (text_of(deltas), deltas[-1].finish) == (with_stop, "stop")


def test_the_beginning_of_a_stop_string_in_a_special_token_is_held_and_then_left_out(words):
    ids = encode(words, f"hello{EOT}there")
    assert text_of(tell(words, ids, stop=("end|>nobody",))) == "hellothere"
    assert text_of(tell(words, ids, stop=("end|>nobody",), skip_special_tokens=False)) == f"hello{EOT}there"


def test_a_special_token_is_no_part_of_a_character(words):
    rocket = encode(words, "🚀")
    deltas = tell(words, [*rocket[:-1], words.tokenizer.token_to_id(EOT), *encode(words, "x")])
    assert text_of(deltas) == "\ufffdx"


def test_a_marker_that_is_not_special_is_text(words):
    assert text_of(tell(words, encode(words, "<think>a</think>b"))) == "<think>a</think>b"


@pytest.mark.parametrize("stops", [("STOP",), ("TOP", "zzz")])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_stop_strings_wait_for_the_least_of_tokens(words, size, stops):
    ids = encode(words, "one STOP two STOP three")
    first = next(k for k in range(1, len(ids) + 1) if "STOP" in words.decode(ids[:k]))  # tokens until it is complete
    assert stops[0] not in text_of(tell(words, ids, size=size, stop=stops))
    for least, times in ((first - 1, 0), (first, 1), (len(ids), 2)):
        deltas = tell(words, ids, size=size, stop=stops, min_tokens=least)
        assert text_of(deltas).count(stops[0]) == times, least
        assert deltas[-1].finish == ("stop" if times < 2 else "length")


def test_a_stop_string_may_begin_before_the_least_of_tokens(words):
    ids = encode(words, "one ST")
    deltas = tell(words, [*ids, *encode(words, "OP")], stop=("STOP",), min_tokens=len(ids))
    assert (text_of(deltas), deltas[-1].finish) == ("one ", "stop")


def test_the_token_that_ends_an_answer_is_shown_only_with_the_stop_strings(words):
    ids = [*encode(words, "hello"), words.tokenizer.token_to_id(EOT)]
    assert text_of(tell(words, ids, finish="stop", skip_special_tokens=False)) == "hello"
    assert text_of(tell(words, ids, finish="stop", skip_special_tokens=False, include_stop=True)) == f"hello{EOT}"
    assert text_of(tell(words, ids, finish="stop", include_stop=True)) == "hello"


# ---------------------------------------------------------------- log-probabilities


def shown_of(deltas):
    return [token for delta in deltas for token in delta.shown]


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("make", ["words", "piece_words"])
@pytest.mark.parametrize("text", ["hello there", "a 🚀 b", "Grüße\n日本"])
def test_tokens_put_together_are_the_text_and_offsets_find_them_in_it(make, kind, text, request):
    words = request.getfixturevalue(make)
    prompt = encode(words, "the") if kind == "text" else ()
    deltas = tell(words, encode(words, text), kind=kind, prompt=prompt, logprobs=0)
    shown, whole = shown_of(deltas), text_of(deltas)
    entries = chat_logprobs(shown, words.vocabulary)["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == whole
    told = text_logprobs(shown, words.vocabulary)
    for name, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert name.startswith("bytes:") or whole[offset : offset + len(name)] == name


def test_a_part_of_a_character_is_told_by_its_own_bytes(piece_words):
    deltas = tell(piece_words, encode(piece_words, "a🚀"), logprobs=0)
    entries = chat_logprobs(shown_of(deltas), piece_words.vocabulary)["content"][-4:]
    assert [entry["bytes"] for entry in entries] == [[0xF0], [0x9F], [0x9A], [0x80]]
    assert [entry["token"] for entry in entries] == ["\\xf0", "\\x9f", "\\x9a", "\\x80"]
    told = text_logprobs(shown_of(deltas), piece_words.vocabulary)
    assert told["tokens"][-4:] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x9a", "bytes:\\x80"]
    assert len(set(told["text_offset"][-4:])) == 1, "they are one character"


def test_a_word_and_the_same_word_behind_a_blank_are_two_tokens(piece_words):
    tokenizer = piece_words.tokenizer
    tokenizer_ids = [tokenizer.token_to_id(piece) for piece in ("▁the", "the")]
    assert None not in tokenizer_ids
    blank, bare = tokenizer_ids
    tokens = tokens_of((blank,), logprob=-2.0, top=((bare, -0.1), (blank, -2.0)))
    within = Teller.of(
        ApiRequest(kind="text", model="m", sampling=SamplingParams(logprobs=2)),
        Answer(index=0, prompt=(bare,), choice=0),
        piece_words,
    )
    told = text_logprobs(within.tell(tokens).shown, piece_words.vocabulary)
    assert told["tokens"] == [" the"] and told["top_logprobs"] == [{"the": -0.1, " the": -2.0}]
    opening = Teller.of(
        ApiRequest(kind="chat", model="m", sampling=SamplingParams(logprobs=2)),
        Answer(index=0, prompt=(), choice=0),
        piece_words,
    )
    told = text_logprobs(opening.tell(tokens).shown, piece_words.vocabulary)
    assert told["tokens"] == ["the"] and told["top_logprobs"] == [{"the": -2.0, f"token_id:{bare}": -0.1}], (
        "at the beginning they print alike, and the sampled one has the name"
    )


def test_the_sampled_token_is_always_among_the_likeliest(words):
    a, b, c = encode(words, "a")[0], encode(words, "b")[0], encode(words, "c")[0]
    for top in ((), ((b, -1.0),), ((b, -1.0), (c, -2.0))):
        teller = Teller.of(
            ApiRequest(kind="text", model="m", sampling=SamplingParams(logprobs=len(top))),
            Answer(index=0, prompt=(a,), choice=0),
            words,
        )
        delta = teller.tell(tokens_of((a,), logprob=-9.0, top=top))
        (entry,) = text_logprobs(delta.shown, words.vocabulary)["top_logprobs"]
        assert entry == {**{words.decode([token]): value for token, value in top}, "a": -9.0}


def test_a_special_token_that_is_left_out_has_no_width(words):
    deltas = tell(words, encode(words, f"hello{EOT}there"), logprobs=0)
    told = text_logprobs(shown_of(deltas), words.vocabulary)
    assert EOT in told["tokens"]
    assert told["text_offset"][told["tokens"].index(EOT) :][:2] == [5, 5]
