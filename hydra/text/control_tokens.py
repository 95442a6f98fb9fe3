"""Control tokens, and the same characters in what somebody wrote: the first are read as tokens, the second as text.

What somebody wrote travels through a chat template with two private-use marks around everything that looks like a
control token, and one mark where it could become one together with what stands beside it. After the template the
marks say which control tokens are its own. A stretch of text between two of those that holds a mark is read by a twin
of the tokenizer that knows no control tokens; everything else is tokenized as the model was trained on it.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import attrs
from tokenizers import AddedToken, Tokenizer, models

from hydra.protocol.refusal import refuse
from hydra.text.chat_template.marks import CLOSES, MARKS, OPENS
from hydra.text.tokenizer_files import encode_text, encode_with_places

EDGE_MIN = 2  # characters of a control token at the edge of a text that are worth a mark


@attrs.frozen
class Stretch:
    """A part of a rendered chat. `literal`: it holds something that only looks like a control token."""

    text: str
    literal: bool
    first: bool  # nothing stands before it


@attrs.define(eq=False)
class ControlTokens:
    """The control tokens of one tokenizer. Its methods may be called from any thread."""

    tokenizer: Tokenizer
    ids: frozenset[int]
    _special: "re.Pattern[str] | None"
    _all: "re.Pattern[str] | None"
    _own: "re.Pattern[str] | None"  # finds a token as the tokenizer does, with the blanks it swallows
    _fenced: "re.Pattern[str]"
    _edges: tuple[frozenset[str], frozenset[str]]  # proper beginnings, proper ends
    _normalizes: bool  # before it looks for some of them, so that other characters may become theirs
    _tokens: tuple[AddedToken, ...]
    _unknown: dict[int, str]
    _literal: Tokenizer | None = attrs.field(default=None, init=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer, template_text: str, unknown: str = "") -> "ControlTokens":
        """All special tokens, and those other added tokens that a template (`template_text`) writes itself.

        `unknown`: the special token that stands for whatever the vocabulary lacks.
        """
        added = tokenizer.get_added_tokens_decoder()
        control = {
            number: token
            for number, token in added.items()
            if token.content.strip() and (token.special or token.content in template_text)
        }
        tokens = tuple(sorted(control.values(), key=lambda token: len(token.content), reverse=True))
        words = [token.content for token in tokens]
        finds = any(token.normalized for token in tokens) or not isinstance(tokenizer.model, models.BPE)
        normalizes = tokenizer.normalizer is not None and finds
        inside = f"[^{OPENS}{CLOSES}]+" if normalizes else "|".join(map(re.escape, words)) or "(?!)"
        return cls(
            tokenizer,
            frozenset(control),
            _any_of([re.escape(token.content) for token in tokens if token.special]),
            _any_of([re.escape(word) for word in words]),
            _any_of([_as_found(token) for token in tokens]),
            re.compile(f"{OPENS}({inside}){CLOSES}|[{OPENS}{CLOSES}]"),
            (
                frozenset(word[:size] for word in words for size in range(EDGE_MIN, len(word))),
                frozenset(word[-size:] for word in words for size in range(EDGE_MIN, len(word))),
            ),
            normalizes,
            tokens,
            {number: token.content for number, token in control.items() if token.content == unknown},
        )

    # ------------------------------------------------------------ before the template

    def mark(self, value: Any, *, models_own: bool = False) -> Any:
        """A JSON value with marks in all its strings, keys among them.

        `models_own`: a model wrote it, so that the marks of its thinking, which are shown in its answers, are read back
        as what they were; special tokens are text even there.
        """
        if isinstance(value, str):
            return self._mark_text(value, self._special if models_own else self._all)
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(item, models_own=models_own) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item, models_own=models_own) for item in value]
        return value

    def _mark_text(self, text: str, pattern: "re.Pattern[str] | None") -> str:
        plain = MARKS.sub("", text)
        if pattern is None or not plain:
            return plain
        spans = [found.span() for found in pattern.finditer(plain)]
        pieces: list[str] = []
        at = 0
        for start, end in sorted([*spans, *self._disguised(plain, spans)]):
            pieces += (plain[at:start], OPENS, plain[start:end], CLOSES)
            at = end
        marked = "".join([*pieces, plain[at:]])
        begins, ends = self._edges
        longest = min(len(plain), max(map(len, begins), default=0))
        if any(plain[-size:] in begins for size in range(EDGE_MIN, longest + 1)):
            marked += OPENS
        if any(plain[:size] in ends for size in range(EDGE_MIN, longest + 1)):
            marked = CLOSES + marked
        return marked

    def _disguised(self, plain: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the tokenizer finds a control token in other characters than the token's own."""
        if not self._normalizes:
            return []
        found = self._forged(encode_with_places(self.tokenizer, plain), plain)
        return [span for span in found if not _between(spans, *span) and span[0] < span[1]]

    # ------------------------------------------------------------ after it

    def encode(self, rendered: str) -> list[int]:
        """Raises RefusalError invalid_value when something in a message cannot be read as anything but a token."""
        ids: list[int] = []
        for stretch in self.stretches(rendered):
            if stretch.literal:
                ids += self._encode_literally(stretch)
            else:
                ids += encode_text(self.tokenizer, stretch.text)
        return ids

    def stretches(self, rendered: str) -> Iterator[Stretch]:
        """`rendered` without marks, cut where reading changes: always at a control token of the template's own."""
        if not MARKS.search(rendered):
            yield Stretch(rendered, literal=False, first=True)
            return
        plain, fences = self._unmark(rendered)
        begin = 0  # of what is not yielded yet
        clear = 0  # end of the last own token, up to which it is free of marks
        for start, end in [*self._own_tokens(plain, fences), (len(plain), len(plain))]:
            if _between(fences, clear, start):
                if begin < clear:
                    yield Stretch(plain[begin:clear], literal=False, first=begin == 0)
                yield Stretch(plain[clear:start], literal=True, first=clear == 0)
                begin = start
            clear = end
        if begin < len(plain):
            yield Stretch(plain[begin:], literal=False, first=begin == 0)

    def _unmark(self, rendered: str) -> tuple[str, list[tuple[int, int]]]:
        """The text without marks, and where they stood: (start, end) of a fenced piece, (at, at) of a lone mark."""
        pieces: list[str] = []
        fences: list[tuple[int, int]] = []
        size, at = 0, 0
        for found in self._fenced.finditer(rendered):
            inside = found.group(1) or ""
            pieces += (rendered[at : found.start()], inside)
            size += found.start() - at
            fences.append((size, size + len(inside)))
            size += len(inside)
            at = found.end()
        pieces.append(rendered[at:])
        return "".join(pieces), fences

    def _own_tokens(self, plain: str, fences: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Where the template's own control tokens stand: those that no mark touches on the inside."""
        at = 0
        while self._own is not None and (found := self._own.search(plain, at)):
            start, end = found.span()
            inside = [fence for fence in _between(fences, start, end) if fence[1] > start and fence[0] < end]
            if inside or start == end:
                at = max(start + 1, inside[0][1] if inside else 0)
                continue
            yield start, end
            at = end

    def _encode_literally(self, stretch: Stretch) -> list[int]:
        encoding = self._twin_encode(stretch.text, stretch.first)
        spans = self._forged(encoding, stretch.text)
        if not spans:
            return list(encoding.ids)
        ids: list[int] = []  # the vocabulary itself has it as a piece: read its halves apart
        cuts = [0, *[(start + end + 1) // 2 for start, end in spans], len(stretch.text)]
        for start, end in pairwise(cuts):
            text = stretch.text[start:end]
            encoding = self._twin_encode(text, stretch.first and start == 0)
            if self._forged(encoding, text):
                raise refuse("invalid_value", "a control token in a message cannot be read as text", param="messages")
            ids += encoding.ids
        return ids

    def _forged(self, encoding: Any, text: str) -> list[tuple[int, int]]:
        """Where text became a control token. What is merely unknown becomes one too, and may."""
        ids: list[int] = encoding.ids
        if self.ids.isdisjoint(ids):
            return []  # the places of a million tokens would hold the interpreter for a second
        return [
            (start, end)
            for number, (start, end) in zip(ids, encoding.offsets, strict=True)
            if number in self.ids and (number not in self._unknown or self._unknown[number] in text[start:end])
        ]

    def _twin_encode(self, text: str, first: bool) -> Any:
        """By the twin. In the middle of a text it is read after a token that is taken away again."""
        twin = self._twin()
        encoding = encode_with_places(twin, text if first else OPENS + text)
        return encoding if first else _Tail(encoding)

    def _twin(self) -> Tokenizer:
        if self._literal is None:
            twin = Tokenizer.from_str(self.tokenizer.to_str())
            for token in self._tokens:
                if not token.special:
                    twin.add_special_tokens([_special(token)])
            twin.add_tokens([AddedToken(OPENS, special=False, normalized=False)])
            twin.encode_special_tokens = True  # which means: as text
            self._literal = twin
        return self._literal


class _Tail:
    """An encoding without its first token, which was one character."""

    def __init__(self, encoding: Any) -> None:
        self.ids: list[int] = encoding.ids[1:]
        self.offsets = [(max(0, start - 1), max(0, end - 1)) for start, end in encoding.offsets[1:]]


def _any_of(patterns: list[str]) -> "re.Pattern[str] | None":
    return re.compile("|".join(patterns)) if patterns else None


def _as_found(token: AddedToken) -> str:
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def _special(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        special=True,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


def _between(fences: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Those that touch [start, end]; `fences` is in order."""
    found: list[tuple[int, int]] = []
    at = max(0, bisect_left(fences, (start, start)) - 1)
    while at < len(fences) and fences[at][0] <= end:
        if fences[at][1] >= start:
            found.append(fences[at])
        at += 1
    return found
