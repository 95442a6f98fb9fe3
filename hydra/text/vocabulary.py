"""What each token of a model stands for: its bytes in a text, and whether it is special.

Promises: the pieces of an answer's tokens, one behind the other, are its text; whoever shows text, looks for stop
strings or describes tokens reads them here. A piece is bytes, because a token may be part of a character. Refuses to
know which texts are shown.
"""

import re

import attrs
from tokenizers import Tokenizer

from hydra.text.tokenizer_files import natively
from hydra.text.tokenizer_steps import steps_of

ANCHOR_TRIES = 65_536
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a printable character; those that are not printable follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


@attrs.define(eq=False)
class Vocabulary:
    """One tokenizer's tokens. May be used from any thread.

    A piece depends on one thing beside its token: whether it opens a text, because tokenizers of the sentencepiece kind
    drop the space that opens one.
    """

    tokenizer: Tokenizer
    special: frozenset[int]
    _added: dict[int, str]
    _byte_level: bool  # tokens are written in GPT-2's alphabet
    _byte_fallback: bool  # tokens like <0xE2> are single bytes
    _word_end: str  # what ends a word, in tokens that mark ends and not beginnings ("</w>")
    _anchor: int | None  # a plain token: what another adds to it is how that one stands within a text
    _within: dict[int, bytes] = attrs.field(factory=dict, init=False)
    _opening: dict[int, bytes] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """Raises RefusalError bad_model."""
        added = tokenizer.get_added_tokens_decoder()
        steps = list(steps_of(tokenizer.decoder))
        kinds = {step.get("type") for step in steps}
        byte_level = "ByteLevel" in kinds
        return cls(
            tokenizer,
            frozenset(number for number, token in added.items() if token.special),
            {number: token.content for number, token in added.items()},
            byte_level,
            "ByteFallback" in kinds,
            next((str(step.get("suffix")) for step in steps if step.get("type") == "BPEDecoder"), ""),
            None if byte_level else natively(_find_anchor, tokenizer, set(added)),
        )

    def piece(self, token: int, *, opening: bool = False) -> bytes:
        """The token's bytes within a text, or at its beginning. Empty for an id that is no token."""
        known = self._opening if opening else self._within
        if (piece := known.get(token)) is None:
            piece = known[token] = natively(self._piece, token, opening)
        return piece

    def content(self, token: int) -> str:
        """An added token as its author wrote it. Raises KeyError for any other."""
        return self._added[token]

    def _piece(self, token: int, opening: bool) -> bytes:
        written = self.tokenizer.id_to_token(token)
        if written is None:
            return b""
        if self._byte_level:
            return self._added[token].encode() if token in self._added else _from_byte_level(written)
        byte = _BYTE_TOKEN.fullmatch(written) if self._byte_fallback else None
        if byte is not None and int(byte[1], 16) >= 0x80:
            return bytes([int(byte[1], 16)])
        if self._word_end:
            whole = written.endswith(self._word_end)
            return (written.removesuffix(self._word_end) + " " * whole).encode()
        if opening or self._anchor is None:
            return self._decoded(token).encode()
        before, both = self._decoded(self._anchor), self._decoded(self._anchor, token)
        return both.removeprefix(before).encode() if both.startswith(before) else self._decoded(token).encode()

    def _decoded(self, *tokens: int) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text


def _from_byte_level(written: str) -> bytes:
    """A token that holds other characters is one that the alphabet does not spell: it stands as it is written."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in written])
    except KeyError:
        return written.encode()


def _find_anchor(tokenizer: Tokenizer, added: set[int]) -> int | None:
    for token in range(min(tokenizer.get_vocab_size(), ANCHOR_TRIES)):
        if token not in added and tokenizer.decode([token], skip_special_tokens=False).isalpha():
            return token
    return None
