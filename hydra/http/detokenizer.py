"""Token ids to text as it grows: never half a character, and never the beginning of a stop string.

Pure, over a `decode(ids) -> str`. Two windows into the ids are decoded and compared, so that a token whose text
depends on its neighbour (a byte of a longer character, a leading space) comes out right; ids before the window are
settled and never decoded again. The first window begins with the end of the prompt: decoders of the sentencepiece kind
drop the space in front of whatever they decode first.
"""

from collections.abc import Callable, Sequence

import attrs

BROKEN = "\ufffd"  # what decoders give for bytes that are not a character (yet)
CONTEXT = 6  # ids of the prompt that the first window begins with
HELD_MAX = 16  # ids that may wait for the end of a character; four would do, for tokens of one byte


@attrs.define
class Detokenizer:
    """`push` returns the text that is certain by now; `flush` what is left at the end. `context`: ids before it."""

    decode: Callable[[Sequence[int]], str]
    context: Sequence[int] = ()
    _ids: list[int] = attrs.field(factory=list, init=False)
    _settled: int = attrs.field(default=0, init=False)  # ids whose text is out and no longer context
    _read: int = attrs.field(default=0, init=False)  # ids whose text is out

    def __attrs_post_init__(self) -> None:
        for size in range(min(CONTEXT, len(self.context)), 0, -1):
            ids = list(self.context[-size:])
            if BROKEN not in self.decode(ids):  # it may begin in the middle of a character
                self._ids, self._read = ids, size
                return

    def push(self, token: int) -> str:
        self._ids.append(token)
        held = len(self._ids) - self._read > HELD_MAX
        before = self.decode(self._ids[self._settled : self._read])
        after = self.decode(self._ids[self._settled :])
        if not held and (len(after) <= len(before) or after.endswith(BROKEN)):
            return ""
        self._settled = len(self._ids) if held else self._read
        self._read = len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """Bytes that never became a character are shown as the decoder shows them."""
        before = self.decode(self._ids[self._settled : self._read])
        after = self.decode(self._ids[self._settled :])
        self._settled = self._read = len(self._ids)
        return after[len(before) :]


@attrs.define
class StopWatch:
    """Looks for stop strings in growing text and holds back whatever may be the beginning of one."""

    stops: tuple[str, ...]
    include: bool = False  # whether the stop string itself is shown
    stopped: bool = attrs.field(default=False, init=False)
    _held: str = attrs.field(default="", init=False)

    def push(self, text: str) -> str:
        """What may be shown now. After a stop string nothing more comes, and `stopped` is true."""
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self.stops if stop in self._held]
        if found:
            at, stop = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self.stopped = True
            return self._held[: at + len(stop)] if self.include else self._held[:at]
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The end came first: what was held back is text after all."""
        held, self._held = self._held, ""
        return "" if self.stopped else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
