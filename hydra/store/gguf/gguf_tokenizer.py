"""tokenizer.json and tokenizer_config.json as GGUF metadata stand for them.

Promises: the ids of a text are those that transformers finds by the same file, cut as the published tokenizer of that
name cuts it; whatever a token list or its merges cannot mean is refused with the key named. Two kinds: byte-level
("gpt2") and sentencepiece ("llama"). Refuses to know chats and models.
"""

from typing import Any

import attrs

from hydra.protocol.refusal import refuse
from hydra.store.files.directory import shown
from hydra.store.gguf.gguf_metadata import Metadata
from hydra.store.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from hydra.store.gguf.sentencepiece_merges import implied_merges

TOKENS, TYPES, SCORES, MERGES = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "scores", "merges"))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"
TEMPLATES_MAX = 16
BLANK = "\u2581"
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_SPACED = frozenset({"gemma2", "gemma3"})  # blanks stay where they are: none is put before a text
_PREPENDED = frozenset({"phi3"})  # the blank before a text comes from its normalizer

Json = dict[str, Any]
Pair = tuple[str, str]


@attrs.frozen(kw_only=True)
class GgufTokenizer:
    """The two files, and what else is asked of the tokens."""

    tokenizer: Json
    config: Json
    tokens: list[str]
    types: list[int]


def tokenizer_of(metadata: Metadata, architecture: str) -> GgufTokenizer:
    """Raises RefusalError: bad_model, unsupported."""
    kind = metadata.text("tokenizer.ggml.model")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(metadata.strings(TOKENS))]
    types = _types(metadata, len(tokens))
    if kind == "gpt2":
        document, opens = _byte_level(metadata, tokens, types)
    elif kind == "llama":
        document, opens = _sentencepiece(metadata, architecture, tokens, types)
    else:
        raise metadata.unsupported("tokenizer.ggml.model", "'gpt2' (byte-level) or 'llama' (sentencepiece)")
    special = _special(metadata, tokens)
    document |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(document["model"]["vocab"], tokens, types),
        "post_processor": _frame(metadata, special, opens=opens),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {},
        "clean_up_tokenization_spaces": False,
        **{name: tokens[number] for name, number in special.items()},
        **_chat_templates(metadata),
    }
    return GgufTokenizer(tokenizer=document, config=config, tokens=tokens, types=types)


def _types(metadata: Metadata, count: int) -> list[int]:
    if not metadata.has(TYPES):
        return [NORMAL] * count
    types = [int(item) for item in metadata.numbers(TYPES)]
    if len(types) != count:
        raise metadata.bad(TYPES, f"has {len(types)} items for {count} tokens")
    return types


def _byte_level(metadata: Metadata, tokens: list[str], types: list[int]) -> tuple[Json, bool]:
    """(the parts that are its own, whether a text opens with the first token by itself)."""
    pre = _pre_tokenizer(metadata)
    spelling = _spelling()
    alphabet = set(spelling)
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        plain = types[number] in (CONTROL, USER_DEFINED) or alphabet.issuperset(token)
        _put(metadata, vocab, token if plain else "".join(spelling[byte] for byte in token.encode()), number)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre.whole_words,
        "vocab": vocab,
        "merges": _stored_merges(metadata, vocab),
    }
    steps = {"type": "Sequence", "pretokenizers": list(pre.steps)}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {"normalizer": None, "pre_tokenizer": steps, "decoder": decoder, "model": model}, pre.opens


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise metadata.unsupported("tokenizer.ggml.pre", f"a pre-tokenizer by one of these names ({known})")
    return PRE_TOKENIZERS[name]


def _sentencepiece(metadata: Metadata, architecture: str, tokens: list[str], types: list[int]) -> tuple[Json, bool]:
    spaced = architecture in _SPACED
    if spaced:  # runs of blanks are stored as such
        tokens = [BLANK * len(token) if not token.strip(" ") else token for token in tokens]
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        _put(metadata, vocab, token, number)
    if metadata.has(MERGES):
        merges = _stored_merges(metadata, vocab)
    else:  # gemma's scores do not follow the order of its merges, that of its tokens does
        scores = [-float(number) for number in range(len(tokens))] if spaced else _scores(metadata, len(tokens))
        merges = implied_merges(tokens, vocab, scores)
    prefixed = metadata.boolean("tokenizer.ggml.add_space_prefix", True) and not spaced
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    before = _before_merges(spaced=spaced, prepended=architecture in _PREPENDED, prefixed=prefixed)
    return {**before, "decoder": _after_merges(prefixed=prefixed), "model": model}, True


def _before_merges(*, spaced: bool, prepended: bool, prefixed: bool) -> Json:
    """How blanks become a character of the vocabulary."""
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    if spaced:
        cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        return {"normalizer": replaced, "pre_tokenizer": cut}
    if prepended:
        steps = [*([{"type": "Prepend", "prepend": BLANK}] if prefixed else []), replaced]
        return {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    scheme = "first" if prefixed else "never"
    blanks = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": blanks}


def _after_merges(*, prefixed: bool) -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _put(metadata: Metadata, vocab: dict[str, int], token: str, number: int) -> None:
    if vocab.setdefault(token, number) != number:
        raise metadata.bad(TOKENS, f"has {shown(token)} twice, as {vocab[token]} and {number}")


def _scores(metadata: Metadata, count: int) -> list[float]:
    scores = [float(score) for score in metadata.numbers(SCORES)]
    if len(scores) != count:
        raise metadata.bad(SCORES, f"has {len(scores)} items for {count} tokens")
    return scores


def _stored_merges(metadata: Metadata, vocab: dict[str, int]) -> list[Pair]:
    merges: list[Pair] = []
    for number, merge in enumerate(metadata.strings(MERGES)):
        at = merge.find(" ", 1)  # a token may begin with a blank, but has none within it
        pair = (merge[:at], merge[at + 1 :])
        if at < 0 or not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
            raise metadata.bad(MERGES, f"has an item {number}, {shown(merge)}, that joins no two tokens to a third")
        merges.append(pair)
    return merges


def _added(vocab: dict[str, int], tokens: list[str], types: list[int]) -> list[Json]:
    """Tokens that are found in a text before anything else; control tokens are no part of what is shown."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **flags, "special": kind == CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and token in vocab
    ]


def _special(metadata: Metadata, tokens: list[str]) -> dict[str, int]:
    """The ids of the tokens that have a name. One that is no token is left out, as by llama.cpp."""
    given = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL_IDS.items()}
    return {name: number for name, number in given.items() if type(number) is int and 0 <= number < len(tokens)}


def _frame(metadata: Metadata, special: dict[str, int], *, opens: bool) -> Json | None:
    """What is put around a raw prompt."""
    tokens = metadata.strings(TOKENS)
    first = special.get("bos_token") if metadata.boolean("tokenizer.ggml.add_bos_token", opens) else None
    last = special.get("eos_token") if metadata.boolean("tokenizer.ggml.add_eos_token", False) else None
    if first is None and last is None:
        return None
    before, after = (
        [] if end is None else [{"SpecialToken": {"id": tokens[end], "type_id": 0}}] for end in (first, last)
    )
    ends = [end for end in (first, last) if end is not None]
    one, other = ({"Sequence": {"id": side, "type_id": 0}} for side in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*before, one, *after],
        "pair": [*before, one, *after, *before, other, *after],
        "special_tokens": {tokens[end]: {"id": tokens[end], "ids": [end], "tokens": [tokens[end]]} for end in ends},
    }


def _chat_templates(metadata: Metadata) -> Json:
    """One by itself, or several by name, of which the first is called "default"."""
    named: dict[str, str] = {}
    if metadata.has(TEMPLATE):
        named["default"] = metadata.text(TEMPLATE)
    names = metadata.strings(TEMPLATES) if metadata.has(TEMPLATES) else []
    if len(names) >= TEMPLATES_MAX:
        raise refuse("bad_model", f"The GGUF file {metadata.file}: {TEMPLATES} has more than {TEMPLATES_MAX} names.")
    named |= {name: metadata.text(f"{TEMPLATE}.{name}") for name in names}
    if set(named) == {"default"}:
        return {"chat_template": named["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in named.items()]} if named else {}


def _spelling() -> list[str]:
    """How byte-level tokenizers spell the 256 bytes: visible Latin-1 as itself, the rest from U+0100 on, in order."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(spare)) for byte in range(256)]
