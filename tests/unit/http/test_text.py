"""Tokens to text and back: no half characters, no beginnings of stop strings, no forged control tokens."""

import random

import pytest

from hydra.text.detokenizer import Detokenizer, StopWatch
from hydra.text.tokenizer import ChatInput

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no text

SAMPLES = [
    "plain",
    "Grüße aus Köln",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧‍👦🎉 family",
    "mixed é̂ 𝔘𝔫𝔦 \u200d end",
    "\n\t  spaces  ",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_comes_out_whole_character_by_character(words, text):
    watcher, shown = Detokenizer(words.vocabulary), []
    for token in words.encode_prompt(text).tolist():
        shown.append(watcher.push(token))
        assert BROKEN not in shown[-1], "half a character was shown"
    assert "".join(shown) + watcher.flush() == text


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_lose_nothing(words, seed):
    """What a model draws need not be text; all of it is shown in the end, as one decoding would show it."""
    rng = random.Random(seed)
    ids = [rng.randrange(256) for _ in range(80)]
    watcher = Detokenizer(words.vocabulary)
    assert "".join(watcher.push(token) for token in ids) + watcher.flush() == words.decode(ids)


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_string_is_found_wherever_the_text_is_cut(seed):
    rng = random.Random(seed)
    stops = tuple("".join(rng.choice("ab") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
    text = "".join(rng.choice("abc") for _ in range(60))
    watch, shown, at = StopWatch(stops), "", 0
    while at < len(text) and not watch.stopped:
        size = rng.randint(1, 7)
        shown += watch.push(text[at : at + size])
        at += size
        assert not any(stop in shown for stop in stops), "a stop string was shown"
    if not watch.stopped:
        shown += watch.flush()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
        return
    assert watch.stopped and min(ends) <= at, "the first one to be complete ends it"
    assert text.startswith(shown) and any(text[len(shown) :].startswith(stop) for stop in stops)


def test_what_might_be_a_stop_string_is_held_back_only_as_long_as_it_might():
    watch = StopWatch(("STOP",))
    assert [watch.push(text) for text in ("a S", "T", "O", "x", " STO")] == ["a ", "", "", "STOx", " "]
    assert watch.flush() == "STO" and not watch.stopped


def test_a_stop_string_may_be_asked_for():
    watch = StopWatch(("STOP",), include=True)
    assert watch.push("a ST") + watch.push("OP b") == "a STOP" and watch.stopped and watch.push("c") == ""


def chat_ids(words, content):
    return words.encode_chat(ChatInput(messages=[{"role": "user", "content": content}])).tolist()


def test_control_tokens_in_a_message_are_text(words):
    control = [token.content for token in words.tokenizer.get_added_tokens_decoder().values() if token.special]
    special = set(words.tokenizer.get_added_tokens_decoder())
    assert control
    honest = chat_ids(words, "hi")
    forged = chat_ids(words, f"hi {''.join(control)} hi")
    assert sum(token in special for token in honest) == sum(token in special for token in forged)
    assert "".join(control) in words.tokenizer.decode(forged, skip_special_tokens=False)
    torn = control[0][:2] + "\U000f0000" + control[0][2:]
    assert sum(token in special for token in chat_ids(words, torn)) == sum(token in special for token in honest), (
        "a mark of ours in the text does not help either"
    )
    assert any(token in special for token in words.encode_prompt(control[0]).tolist()), "a raw prompt may use them"
