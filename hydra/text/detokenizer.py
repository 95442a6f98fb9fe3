"""Token ids to text as it grows: never half a character, and never the beginning of a stop string. Pure.

Text is the pieces of the tokens one behind the other (see Vocabulary), so that it only ever grows: what has been shown
does not depend on what comes. Bytes that are no character are shown as U+FFFD, one for each stretch that could have
been the beginning of one (the Unicode standard's practice, section 3.9).
"""

import codecs
from collections.abc import Iterable

import attrs

from hydra.protocol.batch import EMPTY, Int32Column, token_ids
from hydra.text.vocabulary import Vocabulary

CONTEXT = 8  # ids before the answer that may hold the beginning of a character: four bytes, if each has one


@attrs.define
class Detokenizer:
    """`push` returns the text that is certain by now; `flush` what is left at the end.

    `context`: the ids before it, where the text goes on in theirs. A character that they began is whole in the answer.
    """

    vocabulary: Vocabulary
    context: Int32Column = attrs.field(default=EMPTY, converter=token_ids)
    _opening: bool = attrs.field(init=False)
    _bytes: codecs.IncrementalDecoder = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._opening = all(int(token) in self.vocabulary.special for token in self.context)
        for token in self.context[-CONTEXT:].tolist():
            self._bytes.decode(self.vocabulary.piece(token))

    @property
    def opening(self) -> bool:
        """Whether the next token opens the text."""
        return self._opening

    def push(self, token: int) -> str:
        piece = self.vocabulary.piece(token, opening=self._opening)
        self._opening = False
        return self._bytes.decode(piece)

    def parts(self, token: int, *, hide_special: bool) -> tuple[tuple[str, bool], ...]:
        """What one more token makes certain, as (text, whether it is hidden where text is shown).

        A special token that is to be hidden stands there as its author wrote it, behind whatever bytes were left: it is
        for the place that shows text to leave it out, so that whoever looks for a stop string before sees it.
        """
        if hide_special and token in self.vocabulary.special:
            return (self.flush(), False), (self.vocabulary.content(token), True)
        return ((self.push(token), False),)

    def flush(self) -> str:
        """Bytes that will not become a character any more."""
        return self._bytes.decode(b"", final=True)


def decode_ids(vocabulary: Vocabulary, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """The whole text of these ids, from its beginning."""
    detokenizer = Detokenizer(vocabulary)
    parts = [part for token in map(int, ids) for part in detokenizer.parts(token, hide_special=skip_special)]
    return "".join([*(text for text, hidden in parts if not hidden), detokenizer.flush()])


@attrs.define
class StopWatch:
    """Looks for stop strings in growing text and holds back whatever may be the beginning of one.

    Hidden text is looked through as any other, and left out of what is shown: a stop string may be a special token.
    """

    stops: tuple[str, ...]
    include: bool = False  # whether the stop string itself is shown
    stopped: bool = attrs.field(default=False, init=False)
    _held: str = attrs.field(default="", init=False)
    _hidden: list[bool] = attrs.field(factory=list, init=False)  # of each held character
    _closed: int = attrs.field(default=0, init=False)  # held characters that no stop string may end in

    def push(self, text: str, *, hidden: bool = False, may_stop: bool = True) -> str:
        """What may be shown now. After a stop string nothing more comes, and `stopped` is true.

        Without `may_stop` no stop string ends in this text; one that ends later may begin in it.
        """
        if self.stopped or not self.stops:
            return "" if self.stopped or hidden else text
        self._held += text
        self._hidden += [hidden] * len(text)
        if not may_stop:
            self._closed = len(self._held)
        if (match := self._find()) is not None:
            at, stop = match
            self.stopped = True
            return self._release(at) + (stop if self.include else "")
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        return self._release(len(self._held) - keep)

    def flush(self) -> str:
        """The end came first: what was held back is text after all."""
        return "" if self.stopped else self._release(len(self._held))

    def _find(self) -> tuple[int, str] | None:
        """Where the stop string that is complete first begins; of several that end there, the longest."""
        starts = [(self._held.find(stop, max(0, self._closed - len(stop) + 1)), stop) for stop in self.stops]
        return min(
            ((at, stop) for at, stop in starts if at >= 0), key=lambda hit: (hit[0] + len(hit[1]), hit[0]), default=None
        )

    def _release(self, size: int) -> str:
        text, hidden = self._held[:size], self._hidden[:size]
        self._held, self._hidden = self._held[size:], self._hidden[size:]
        self._closed = max(0, self._closed - size)
        if not any(hidden):
            return text
        return "".join(character for character, is_hidden in zip(text, hidden, strict=True) if not is_hidden)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
