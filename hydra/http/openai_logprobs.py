"""Log-probabilities in OpenAI's two shapes, of chats and of completions. Pure: shown tokens in, dictionaries out.

A token is its bytes as they stand in the text. Where these are no whole characters, the text for them is written in
escapes, as OpenAI writes it; the bytes beside it are the token's own.
"""

from collections.abc import Sequence
from typing import Any

from hydra.http.teller import TokenShown
from hydra.text.vocabulary import Vocabulary

LEAST = -9999.0  # OpenAI's "not among the likeliest"; JSON has no infinity


def chat_logprobs(shown: Sequence[TokenShown], vocabulary: Vocabulary) -> dict[str, Any]:
    content = []
    for place in shown:
        sampled, opening = place.sampled, place.opening
        entry = _entry(vocabulary.piece(sampled.token, opening=opening), sampled.logprob)
        entry["top_logprobs"] = [
            _entry(vocabulary.piece(token, opening=opening), value) for token, value in sampled.top
        ]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(piece: bytes, value: float | None) -> dict[str, Any]:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": _at_least(value), "bytes": list(piece)}


def _at_least(value: float | None) -> float:
    """None: no stage has said it."""
    return LEAST if value is None else max(value, LEAST)


def text_logprobs(shown: Sequence[TokenShown], vocabulary: Vocabulary) -> dict[str, Any]:
    """`top_logprobs` always holds the sampled token, beside as many of the likeliest as were asked for."""
    return {
        "tokens": [_name(vocabulary.piece(place.sampled.token, opening=place.opening)) for place in shown],
        "token_logprobs": [_at_least(place.sampled.logprob) for place in shown],
        "top_logprobs": [_by_name(place, vocabulary) for place in shown],
        "text_offset": [place.offset for place in shown],
    }


def _name(piece: bytes) -> str:
    """A name by which a token of completions is found in `top_logprobs`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + piece.decode("utf-8", "backslashreplace")


def _by_name(place: TokenShown, vocabulary: Vocabulary) -> dict[str, float]:
    """Of tokens that print alike the sampled one has the name, else the likeliest; the others are called by number."""
    sampled = place.sampled
    own = _name(vocabulary.piece(sampled.token, opening=place.opening))
    named: dict[str, float] = {}
    for token, value in sampled.top:
        name = own if token == sampled.token else _name(vocabulary.piece(token, opening=place.opening))
        taken = name in named or (name == own and token != sampled.token)
        named[f"token_id:{token}" if taken else name] = max(value, LEAST)
    named.setdefault(own, _at_least(sampled.logprob))
    return named
