"""Tokens as bytes: one behind the other they are the text, whatever kind of tokenizer they are of."""

import random

import pytest
from tokenizers import AddedToken

from hydra.text.detokenizer import Detokenizer, decode_ids
from hydra.text.vocabulary import Vocabulary
from tests.unit.text.tokenizer_zoo import ZOO, byte_fallback, byte_level, unigram

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no text
ROCKET = "🚀".encode()


@pytest.fixture(scope="module", params=ZOO, ids=list(ZOO))
def tokenizer(request):
    return ZOO[request.param][0]()


def plain_ids(tokenizer):
    """Of the tokens that are text by themselves."""
    added = tokenizer.get_added_tokens_decoder()
    ids = [number for number in range(tokenizer.get_vocab_size()) if number not in added]
    return [number for number in ids if BROKEN not in tokenizer.decode([number])]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_model_draws_its_pieces_are_the_text(tokenizer, seed):
    rng, vocabulary = random.Random(seed), Vocabulary.of(tokenizer)
    ids = rng.choices(plain_ids(tokenizer), k=rng.randint(1, 30))
    pieces = [vocabulary.piece(ids[0], opening=True), *(vocabulary.piece(token) for token in ids[1:])]
    assert b"".join(pieces).decode() == tokenizer.decode(ids) == decode_ids(vocabulary, ids)


def test_special_tokens_are_known_and_are_text_where_they_are_shown(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    end = tokenizer.token_to_id("<|im_end|>")
    assert end in vocabulary.special and vocabulary.content(end) == "<|im_end|>"
    ids = [*tokenizer.encode("hello", add_special_tokens=False).ids, end]
    assert decode_ids(vocabulary, ids) == tokenizer.decode(ids[:-1])
    shown = decode_ids(vocabulary, ids, skip_special=False)
    assert shown == tokenizer.decode(ids, skip_special_tokens=False) and "<|im_end|>" in shown


def test_a_special_token_is_in_the_text_and_hidden_until_it_is_shown(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    end = tokenizer.token_to_id("<|im_end|>")
    plain = plain_ids(tokenizer)[0]
    detokenizer = Detokenizer(vocabulary)
    assert detokenizer.parts(end, hide_special=True) == (("", False), ("<|im_end|>", True))
    ((text, hidden),) = detokenizer.parts(plain, hide_special=True)
    assert text == vocabulary.piece(plain, opening=True).decode() and not hidden, "what is hidden opens no text"
    ((text, hidden),) = detokenizer.parts(end, hide_special=False)
    assert text == vocabulary.piece(end).decode() and not hidden


@pytest.mark.parametrize("make", [byte_level, lambda: byte_fallback("first")], ids=["byte level", "byte fallback"])
def test_a_part_of_a_character_is_its_own_bytes(make):
    tokenizer = make()
    vocabulary = Vocabulary.of(tokenizer)
    ids = tokenizer.encode("x🚀", add_special_tokens=False).ids
    pieces = [vocabulary.piece(token) for token in ids]
    assert b"".join(pieces).endswith(ROCKET) and all(
        BROKEN in piece.decode("utf-8", "replace") for piece in pieces[-2:]
    )


def test_the_blank_before_a_word_belongs_to_it_but_at_the_beginning():
    vocabulary, tokenizer = Vocabulary.of(byte_fallback("first")), byte_fallback("first")
    hello = tokenizer.token_to_id("▁hello")
    assert (vocabulary.piece(hello), vocabulary.piece(hello, opening=True)) == (b" hello", b"hello")


def test_an_added_token_is_written_as_its_author_wrote_it():
    """Its letters are no alphabet of bytes, though some of them look like that."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("café", normalized=False)])
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.piece(tokenizer.token_to_id("café")) == "café".encode()


def test_an_id_beyond_the_tokenizer_is_no_text():
    vocabulary = Vocabulary.of(unigram())
    assert vocabulary.piece(10**6) == b"" and decode_ids(vocabulary, [10**6]) == ""


# ---------------------------------------------------------------- growing text


def byte_ids(tokenizer, data):
    return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]


def told(vocabulary, ids):
    """What is shown token by token, and at the end."""
    detokenizer = Detokenizer(vocabulary)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def test_a_whole_character_is_not_broken_by_the_bytes_behind_it():
    """The library's own decoder replaces every byte of a run that ends in the middle of a character."""
    tokenizer = byte_fallback("first")
    ids = byte_ids(tokenizer, "é".encode() + ROCKET[:3])
    assert told(Vocabulary.of(tokenizer), ids) == ["", "é", "", "", "", BROKEN]
    assert tokenizer.decode(ids) == BROKEN * 5


def test_bytes_that_are_no_character_are_one_sign_and_the_next_character_is_whole():
    tokenizer = byte_fallback("first")
    ids = byte_ids(tokenizer, ROCKET[:3] + "é".encode())
    assert told(Vocabulary.of(tokenizer), ids) == ["", "", "", BROKEN, "é", ""]


@pytest.mark.parametrize("seed", range(30))
def test_what_was_shown_never_changes(tokenizer, seed):
    """Of any ids at all: what is told of the first ones is the beginning of what is told of all."""
    rng, vocabulary = random.Random(seed), Vocabulary.of(tokenizer)
    ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(40)]
    cut = rng.randrange(40)
    assert told(vocabulary, ids)[:cut] == told(vocabulary, ids[:cut])[:cut]
    assert "".join(told(vocabulary, ids)) == decode_ids(vocabulary, ids, skip_special=False)


def test_a_character_that_the_prompt_began_is_whole_in_the_answer():
    tokenizer = byte_fallback("first")
    vocabulary = Vocabulary.of(tokenizer)
    prompt = [*tokenizer.encode("the", add_special_tokens=False).ids, *byte_ids(tokenizer, ROCKET[:2])]
    detokenizer = Detokenizer(vocabulary, prompt)
    assert "".join(map(detokenizer.push, byte_ids(tokenizer, ROCKET[2:]))) == "🚀"
