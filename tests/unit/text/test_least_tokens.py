"""What a text costs at least: never more than its encoding, and much where a text is far beyond a context."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from hydra.text.least_tokens import LeastTokens
from hydra.text.tokenizer_files import encode_text
from tests.unit.text.tokenizer_zoo import TEXTS, ZOO, byte_fallback, byte_level

PARTS = [
    "hello", " ", "   ", "\n\n", "world", "Grüße", "日本語", "🎉", "👩‍👩‍👧", "e\u0301", "\u1100\u1161\u11a8", "\u2581",
    "<think>", "<|im_end|>", "<|im_end|>   ", "[INST]", "a" * 50, "\u3000", "\u00a0", "\ud800", "\x00", "_____",
    "12345", "\ufb01", "\U00011382\U000113bb", "\U0001d15e", "</s>", "ﷺ",
]  # fmt: skip


def with_form(made: Tokenizer, form) -> Tokenizer:
    made.normalizer = form
    return made


def dropping(made: Tokenizer) -> Tokenizer:
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    return made


MORE = {
    "as Qwen, composed": lambda: with_form(byte_level(), normalizers.NFC()),
    "decomposed": lambda: with_form(byte_level(), normalizers.NFD()),
    "compatible": lambda: with_form(byte_level(), normalizers.NFKC()),
    "two forms": lambda: with_form(byte_level(), normalizers.Sequence([normalizers.NFD(), normalizers.NFC()])),
    "blanks dropped": lambda: dropping(byte_level()),
    "stripped": lambda: with_form(byte_level(), normalizers.Strip()),
    "without accents": lambda: with_form(
        byte_level(), normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "halved": lambda: with_form(byte_level(), normalizers.Replace("aa", "")),
}
KINDS = {**{name: make for name, (make, _) in ZOO.items()}, **MORE}
COUNTED = {
    "byte level", "byte level with bos", "byte fallback, first", "byte fallback, always", "byte fallback, legacy",
    "swallowing", "as Qwen, composed", "decomposed", "compatible", "blanks dropped",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_no_text_has_fewer_tokens_than_it_is_said_to_have(name):
    tokenizer, chance = KINDS[name](), random.Random(name)
    least = LeastTokens.of(tokenizer)
    texts = ["", " ", *PARTS, *TEXTS, *("".join(chance.choices(PARTS, k=chance.randrange(40))) for _ in range(100))]
    for text in texts:
        text = text.encode("utf-8", "replace").decode()
        assert least.of_text(text) <= len(encode_text(tokenizer, text)), repr(text)
    assert (least.of_text("Grüße, hello " * 1000) > 500) == (name in COUNTED)


def test_a_run_that_one_token_covers_is_cheap_and_a_digit_is_not():
    made = byte_level()
    made.add_tokens([AddedToken("=" * 100, normalized=False)])
    least = LeastTokens.of(made)
    assert least.of_text("=" * 1000) == 10 == len(encode_text(made, "=" * 1000))
    assert least.of_text("7" * 1000) >= 500


def test_nothing_is_known_of_a_tokenizer_that_knows_not_all_bytes():
    letters = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert LeastTokens.of(letters).of_text("zzzz") == 0 == len(encode_text(letters, "zzzz"))
    assert LeastTokens.of(Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))).of_text("zzzz") == 0
    assert LeastTokens.of(byte_fallback("first")).of_text("zzzz") > 0
