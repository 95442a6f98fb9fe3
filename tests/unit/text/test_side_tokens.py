"""Tokens that only a file beside tokenizer.json knows: one id each, the one that transformers finds."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from hydra.protocol.refusal import RefusalError
from hydra.text.tokenizer import ChatInput, ModelTokenizer
from tests.unit.text.tokenizer_zoo import byte_fallback, byte_level, save

A, B, C = "<|alpha|>", "[BETA]", "<gamma>"
SIZE = byte_level().get_vocab_size()


def flags(content, **more):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, **more}


FILES = {
    "added tokens of old": {"added_tokens.json": {B: SIZE + 1, A: SIZE, C: SIZE + 2}},
    "added and special of old": {
        "added_tokens.json": {A: SIZE, B: SIZE + 1, C: SIZE + 2},
        "special_tokens_map.json": {"additional_special_tokens": [A, B]},
    },
    "special map alone": {"special_tokens_map.json": {"additional_special_tokens": [A, B], "pad_token": C}},
    "special map, new spelling": {"special_tokens_map.json": {"extra_special_tokens": [A, flags(B)]}},
    "a list of the older spelling": {"tokenizer_config.json": {"additional_special_tokens": [A, B, C]}},
    "a list": {"tokenizer_config.json": {"extra_special_tokens": [A, B]}},
    "a list of objects": {
        "tokenizer_config.json": {"extra_special_tokens": [flags(A, __type="AddedToken", special=True), B]}
    },
    "with names": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": A, "eot_token": B}}},
    "names at the top": {"tokenizer_config.json": {"image_token": A, "boi_token": B}},
    "both spellings": {"tokenizer_config.json": {"additional_special_tokens": [A], "extra_special_tokens": [B]}},
    "lists in both files": {
        "tokenizer_config.json": {"extra_special_tokens": [A]},
        "special_tokens_map.json": {"extra_special_tokens": [A, B]},
    },
    "beside listed ones": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(SIZE): flags(A, special=True)},
            "additional_special_tokens": [A, B],
        }
    },
    "a map that counts no more": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(SIZE): flags(A, special=True)}},
        "special_tokens_map.json": {"additional_special_tokens": [A, B]},
        "added_tokens.json": {C: SIZE + 1},
    },
    "an added token that is there already": {"added_tokens.json": {"<think>": SIZE - 4, A: SIZE}},
}


def directory_of(tmp_path, files, make=byte_level):
    directory = save(tmp_path, make(), "{{ messages[0].content }}", **files.get("tokenizer_config.json", {}))
    for name, content in files.items():
        if name != "tokenizer_config.json":
            (directory / name).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
def test_they_are_the_ids_that_transformers_finds(tmp_path, files):
    directory = directory_of(tmp_path, files)
    words, theirs = ModelTokenizer.load(directory), PreTrainedTokenizerFast.from_pretrained(str(directory))
    text = f"a{A}b{B}c{C}d<think>e"
    ids = words.encode_prompt(text).tolist()
    assert ids == theirs.encode(text)
    assert max(ids) >= SIZE, "at least one is not in tokenizer.json"
    special = {number for number, token in theirs.added_tokens_decoder.items() if token.special}
    if files is FILES["added and special of old"]:
        special |= {SIZE, SIZE + 1}  # it overlooks there what an older map calls special
    assert special == words.vocabulary.special
    assert words.decode(ids) == theirs.decode([token for token in ids if token not in special])


@pytest.mark.parametrize("files", [FILES["added and special of old"], FILES["with names"]], ids=["old", "names"])
def test_of_the_sentencepiece_kind_too(tmp_path, files):
    size = byte_fallback("first").get_vocab_size()
    moved = {
        name: {key: size + value - SIZE if type(value) is int else value for key, value in content.items()}
        for name, content in files.items()
    }
    directory = directory_of(tmp_path, moved, lambda: byte_fallback("first"))
    theirs = PreTrainedTokenizerFast.from_pretrained(str(directory))
    assert ModelTokenizer.load(directory).encode_prompt(f"a{A}b{B}c").tolist() == theirs.encode(f"a{A}b{B}c")


def test_objects_in_an_old_list_are_tokens_too(tmp_path):
    """As older releases of transformers wrote them, which its present one cannot read any more."""
    old = {"special_tokens_map.json": {"additional_special_tokens": [A, flags(B)]}}
    words = ModelTokenizer.load(directory_of(tmp_path, old))
    assert words.encode_prompt(A + B).tolist() == [SIZE, SIZE + 1] and {SIZE, SIZE + 1} <= words.vocabulary.special


def test_a_message_cannot_write_them(tmp_path):
    words = ModelTokenizer.load(directory_of(tmp_path, FILES["added and special of old"]))
    ids = words.encode_chat(ChatInput(messages=[{"role": "user", "content": f"{A} and {B}"}])).tolist()
    assert not {words.tokenizer.token_to_id(A), words.tokenizer.token_to_id(B)} & set(ids)
    assert words.decode(ids) == f"{A} and {B}"


def test_a_template_knows_them_by_name(tmp_path):
    files = {
        "tokenizer_config.json": {"extra_special_tokens": {"image_token": A}, "chat_template": "{{ image_token }}"}
    }
    directory = save(tmp_path, byte_level(), None, **files["tokenizer_config.json"])
    words, theirs = ModelTokenizer.load(directory), PreTrainedTokenizerFast.from_pretrained(str(directory))
    ids = words.encode_chat(ChatInput(messages=[{"role": "user", "content": "x"}])).tolist()
    assert ids == [words.tokenizer.token_to_id(A)]
    assert ids == theirs.apply_chat_template([{"role": "user", "content": "x"}], return_dict=False)


BAD = {
    "ids as text": {"added_tokens.json": {A: "7"}},
    "a negative id": {"added_tokens.json": {A: -1}},
    "an endless id": {"added_tokens.json": {A: 10**9}},
    "a token of nothing": {"added_tokens.json": {"": SIZE}},
    "a list of numbers": {"tokenizer_config.json": {"extra_special_tokens": [7]}},
    "a number": {"tokenizer_config.json": {"additional_special_tokens": 7}},
    "an object without content": {"special_tokens_map.json": {"additional_special_tokens": [{"lstrip": True}]}},
    "flags of text": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": flags(A, lstrip="yes")}}},
}


@pytest.mark.parametrize("files", BAD.values(), ids=BAD.keys())
def test_what_makes_no_sense_is_refused(tmp_path, files):
    with pytest.raises(RefusalError, match=r"added_tokens\.json|tokenizer_config\.json") as refused:
        ModelTokenizer.load(directory_of(tmp_path, files))
    assert refused.value.refusal.code == "bad_model"
