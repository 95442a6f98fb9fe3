"""What a tokenizer could be built to do with an ordinary text: grow it, or never come to an end with it.

Promises to find steps that multiply, by reading their parameters, and the slow ones it can reach with some plain texts.
It is run where it may be killed; it knows no process.
"""

import base64
import struct
from typing import Any

from tokenizers import Tokenizer

from hydra.protocol.refusal import refuse
from hydra.text.tokenizer_steps import steps_of

GROWTH_MAX, STEPS_MAX = 64.0, 64
ADDED_CHARACTERS_MAX, ADDED_IDS_MAX = 256, 64
TOKEN_CHARACTERS_MAX = 8192
CHARSMAP_TEXT_MAX = 256  # bytes; the longest that Unicode's own forms need is 33
PROBE = 8192  # characters
PROBES = (
    "Hello, world! It's 12:30; x = [1, 2, 3].\n\n\tdef f(): return None\r\n",
    "Grüße 日本語のテキスト עברית العربية हिन्दी 👩‍👩‍👧‍👦 𝔘𝔫𝔦 e\u0301 ﬁ ﷺ \u200d\ufeff",
    "a" * PROBE, " " * PROBE, "\n" * PROBE, "ab" * (PROBE // 2), "a b" * (PROBE // 3), "!" * PROBE, "0" * PROBE,
    "日" * PROBE, "aA1!" * (PROBE // 4) + "\x00", "a" * PROBE + "!", "'s" * (PROBE // 2),
)  # fmt: skip


def check_steps(tokenizer: Tokenizer) -> None:
    """Raises RefusalError bad_model when the steps before and after the vocabulary multiply what they are given."""
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(steps_of(getattr(tokenizer, part)))
        growth = 1.0
        for one in steps:
            growth *= _growth(one)
        if len(steps) > STEPS_MAX or growth > GROWTH_MAX:
            raise refuse("bad_model", f"tokenizer.json: its {part} makes texts more than {GROWTH_MAX:.0f} times longer")
    longest = max(map(len, tokenizer.get_vocab()), default=0)
    if longest > TOKEN_CHARACTERS_MAX:
        raise refuse("bad_model", f"tokenizer.json: a token of {longest} characters")


def check_probes(tokenizer: Tokenizer) -> None:
    """Reads and writes some plain texts. Raises RefusalError bad_model."""
    for text in PROBES:
        bare, framed = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
        if len(framed.ids) > len(bare.ids) + ADDED_IDS_MAX:
            raise refuse("bad_model", f"tokenizer.json: it adds more than {ADDED_IDS_MAX} tokens to a text")
        written = tokenizer.decode(bare.ids, skip_special_tokens=True)
        if len(written) > GROWTH_MAX * (len(text) + ADDED_CHARACTERS_MAX):
            raise refuse("bad_model", f"tokenizer.json: it writes texts more than {GROWTH_MAX:.0f} times longer")


def _growth(step: dict[str, Any]) -> float:
    """By how much a step can make a text longer, in characters out of one."""
    kind = step.get("type")
    if kind == "Prepend":
        return 1.0 if len(step.get("prepend", "")) <= ADDED_CHARACTERS_MAX else GROWTH_MAX + 1
    if kind == "Replace":
        old = step.get("pattern", {})
        least = len(old["String"]) if isinstance(old, dict) and old.get("String") else 1
        return max(1.0, len(step.get("content", "")) / least)
    if kind == "ByteLevel":
        return 2.0
    if kind == "Precompiled":
        return _charsmap_growth(step.get("precompiled_charsmap") or "")
    return 1.0


def _charsmap_growth(encoded: str) -> float:
    """sentencepiece's table: a trie's length, the trie, then the texts that characters become, with NULs between."""
    raw = base64.b64decode(encoded)
    if len(raw) < 4:
        return 1.0
    texts = raw[4 + struct.unpack("<I", raw[:4])[0] :]
    longest = max(map(len, texts.split(b"\0")), default=0)
    return 1.0 if longest <= CHARSMAP_TEXT_MAX else GROWTH_MAX + 1
