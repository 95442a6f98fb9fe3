"""How a byte-level vocabulary wants a text cut before its merges apply: by the name that a GGUF file gives.

A file holds no expression, only llama.cpp's name for one; these are the expressions of the published tokenizers that
go by those names. A name that is not here is refused: a text cut otherwise becomes other tokens.
"""

from collections.abc import Mapping
from typing import Any

import attrs

Cut = dict[str, Any]

_CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")

_LLAMA3 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = "|".join(_WORDS) + r"|\p{N}" + _SLASHED_TAIL
_GPT4O = "|".join(f"{words}{_CONTRACTED}?" for words in _WORDS) + r"|\p{N}{1,3}" + _SLASHED_TAIL
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(expression: str) -> Cut:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _byte_level(*, splits: bool) -> Cut:
    """`splits`: by GPT-2's own expression."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


@attrs.frozen
class PreTokenizer:
    """`whole_words`: a word that is in the vocabulary is that token, whatever the merges say; `opens`: a text begins
    with the first token unless the file says otherwise."""

    steps: tuple[Cut, ...]
    whole_words: bool = False
    opens: bool = False


def _of(*expressions: str, whole_words: bool = False) -> PreTokenizer:
    steps = (*(_split(expression) for expression in expressions), _byte_level(splits=False))
    return PreTokenizer(steps, whole_words, opens=whole_words)


_GPT2 = PreTokenizer((_byte_level(splits=True),))
_DIGITS = PreTokenizer(({"type": "Digits", "individual_digits": True}, _byte_level(splits=True)))
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt", "exaone4", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _DIGITS),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _of(_LLAMA3, whole_words=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _of(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "kormo"), _of(_QWEN2)),
    "qwen35": _of(_QWEN35),
    "tekken": _of(_TEKKEN, whole_words=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _of(_GPT4O)),
    "deepseek-coder": _of(*_CODER),
    "deepseek-v3": _of(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3),
}
