"""The merges that a sentencepiece vocabulary implies: its best token that two others make is joined first.

Promises the order that transformers finds. Knows neither files nor texts.
"""

from collections.abc import Mapping, Sequence

PIECE_MAX = 256  # characters; longer tokens, which only a broken list has, are made by no merge


def implied_merges(tokens: Sequence[str], vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """By score, the highest first; among equals longer halves first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        if len(token) > PIECE_MAX:
            continue
        halves = [
            (token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in vocab and token[at:] in vocab
        ]
        halves.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in halves]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in found]
