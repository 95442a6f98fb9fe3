"""How many tokens a text has at least, told from its bytes: whether it can fit a context before it is encoded.

A token that covers n bytes pays for each of them 1/n. So a byte that stands in no token longer than n costs at least
1/n of a token, and a text at least the sum over its bytes. It promises never to count more than there are; of a
tokenizer that may drop or join what it is given it knows nothing, and counts nothing. It encodes nothing.
"""

import math
import re
import unicodedata
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models

from hydra.text.tokenizer_steps import steps_of
from hydra.text.vocabulary import BYTE_OF_CHARACTER

BLANK = "\u2581"  # how tokenizers of the sentencepiece kind write a space
BLANKS = np.frombuffer("".join(chr(code) for code in range(0x3001) if chr(code).isspace()).encode(), np.uint8)
NEWER = re.compile("[\U00010000-\U0010ffff]+")  # scripts of which another release of Unicode may know compositions

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_KEEPING = {"ByteLevel", "Digits", "UnicodeScripts", "FixedLength"}  # of the steps before the model
_DROPPING_BLANKS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_NOTHING = np.zeros(256)


@attrs.frozen(eq=False)
class LeastTokens:
    """Of one tokenizer: what each byte costs at least, and the form that it brings texts into before."""

    costs: npt.NDArray[np.float64]
    form: Form | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "LeastTokens":
        before = [*steps_of(tokenizer.normalizer), *steps_of(tokenizer.pre_tokenizer)]
        forms = [step["type"] for step in before if step.get("type") in ("NFC", "NFD", "NFKC", "NFKD")]
        byte_level = any(step.get("type") == "ByteLevel" for step in before)
        if len(forms) > 1 or not all(map(_keeps_text, before)) or not _knows_all_bytes(tokenizer, byte_level):
            return cls(_NOTHING)
        costs = 1 / _longest(tokenizer, byte_level)
        added = tokenizer.get_added_tokens_decoder().values()
        if any(step.get("type") in _DROPPING_BLANKS for step in before) or any(t.lstrip or t.rstrip for t in added):
            costs[BLANKS] = 0
        return cls(costs, forms[0] if forms else None)

    def of_text(self, text: str) -> int:
        if not self.costs.any():
            return 0
        if self.form is not None and not text.isascii():
            text = NEWER.sub("", unicodedata.normalize(self.form, text))
        counts = np.bincount(np.frombuffer(text.encode("utf-8", "replace"), np.uint8), minlength=256)
        return math.ceil(float(counts @ self.costs) * (1 - 1e-9))  # what sums of fractions may be too much by


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether a step before the model leaves every byte of a text in it, blanks apart."""
    match step:
        case {"type": "Replace", "pattern": {"String": " "}, "content": content}:
            return bool(content == BLANK)
        case {"type": "Metaspace", "replacement": replacement}:
            return bool(replacement == BLANK)
        case {"type": "Split" | "Punctuation", "behavior": behavior}:
            return bool(behavior != "Removed")
        case {"type": "Prepend" | "NFC" | "NFD" | "NFKC" | "NFKD"}:
            return True
    return step.get("type") in (_KEEPING | _DROPPING_BLANKS)


def _knows_all_bytes(tokenizer: Tokenizer, byte_level: bool) -> bool:
    """Nothing is unknown to it, so that nothing is dropped and no stretch of a text becomes one token."""
    model = tokenizer.model
    if not isinstance(model, models.BPE):
        return False
    if byte_level:
        return all(model.token_to_id(character) is not None for character in BYTE_OF_CHARACTER)
    return model.byte_fallback and all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))


def _longest(tokenizer: Tokenizer, byte_level: bool) -> npt.NDArray[np.float64]:
    """Of each byte, the length of the longest token that it may stand in."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    covered: list[tuple[int, set[int]]] = []
    for token in tokenizer.get_vocab():
        if byte_level and token not in added:
            covered.append((len(token), {BYTE_OF_CHARACTER.get(character, 0) for character in token}))
        else:
            raw = token.encode("utf-8", "replace")
            covered.append((len(raw), set(raw) | ({0x20} if BLANK in token else set())))
    longest = np.ones(256)
    for length, bytes_in_it in sorted(covered, key=lambda one: one[0]):
        longest[list(bytes_in_it)] = length
    return np.maximum(longest, 1)
