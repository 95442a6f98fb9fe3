"""Foreign text for a terminal: what a model, a server or a name says, with nothing in it that a terminal obeys.

Promises: line ends, tabs and whatever is printed stay; a control character (escape sequences begin with one), a mark
that turns the direction of writing, and half a character become visible. Refuses to know where text comes from.
"""

import re

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    return _OBEYED.sub(_visible, text)


def in_one_line(text: str) -> str:
    return " ".join(without_controls(text).split())


def well_formed(text: str) -> str:
    """Text that can be sent: what could not be decoded where it was typed is a replacement character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _visible(match: re.Match[str]) -> str:
    character, code = match[0], ord(match[0])
    if character == "\r":
        return ""  # of a line end; alone it would write over what stands in the line
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
