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
    for token in shown:
        entry = _entry(vocabulary.piece(token.token, opening=token.opening), token.logprobs.chosen)
        entry["top_logprobs"] = [
            _entry(vocabulary.piece(other, opening=token.opening), value) for other, value in token.logprobs.top
        ]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(piece: bytes, value: float) -> dict[str, Any]:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": max(value, LEAST), "bytes": list(piece)}


def text_logprobs(shown: Sequence[TokenShown], vocabulary: Vocabulary) -> dict[str, Any]:
    """`top_logprobs` always holds the sampled token, beside as many of the likeliest as were asked for."""
    return {
        "tokens": [_name(vocabulary.piece(token.token, opening=token.opening)) for token in shown],
        "token_logprobs": [max(token.logprobs.chosen, LEAST) for token in shown],
        "top_logprobs": [_by_name(token, vocabulary) for token in shown],
        "text_offset": [token.offset for token in shown],
    }


def _name(piece: bytes) -> str:
    """A name by which a token of completions is found in `top_logprobs`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + piece.decode("utf-8", "backslashreplace")


def _by_name(shown: TokenShown, vocabulary: Vocabulary) -> dict[str, float]:
    """Of tokens that print alike the sampled one has the name, else the likeliest; the others are called by number."""
    sampled = _name(vocabulary.piece(shown.token, opening=shown.opening))
    named: dict[str, float] = {}
    for token, value in shown.logprobs.top:
        name = sampled if token == shown.token else _name(vocabulary.piece(token, opening=shown.opening))
        taken = name in named or (name == sampled and token != shown.token)
        named[f"token_id:{token}" if taken else name] = max(value, LEAST)
    named.setdefault(sampled, max(shown.logprobs.chosen, LEAST))
    return named
