"""Where the lines of a conversation come from and where its text goes: a terminal, or pipes and files.

Promises: without a terminal at both ends nothing is printed but answers, to standard output, and notices, to standard
error; foreign text is shown without control characters; a reader who is gone ends the conversation and not the program
in a traceback. Refuses to know what the lines mean.
"""

import io
import json
import os
import sys
from types import ModuleType

import attrs

from hydra.cli.chat.conversation import ShowEnd
from hydra.cli.terminal_text import without_controls
from hydra.log.standard_streams import discard, print_line

PROMPT = "> "


@attrs.define(eq=False)
class ChatTerminal:
    """`as_json`: an answer is one line of JSON when it is over, instead of text as it comes."""

    as_json: bool
    interactive: bool
    _editor: ModuleType | None = None  # readline, where lines are edited

    @classmethod
    def open(cls, *, as_json: bool) -> "ChatTerminal":
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # what an encoding lacks is no reason to end
        interactive = os.isatty(0) and os.isatty(1)
        return cls(as_json, interactive, _line_editor() if interactive else None)

    def read_line(self) -> str | None:
        """None at the end of input. Raises KeyboardInterrupt for Ctrl-C on an empty line; it empties any other."""
        if not self.interactive:
            return sys.stdin.readline() or None
        try:
            return input(PROMPT)
        except EOFError:
            print_line("")
            return None
        except KeyboardInterrupt:
            print_line("")
            if self._editor is None or not self._editor.get_line_buffer():
                raise
            return ""

    def show_piece(self, text: str) -> None:
        """Raises BrokenPipeError."""
        if not self.as_json:
            _write(without_controls(text))

    def show_end(self, end: ShowEnd) -> None:
        """Raises BrokenPipeError."""
        if self.as_json:
            answer = {"model": end.model, "content": end.content, "finish_reason": end.finish_reason}
            _write(json.dumps(answer | ({"error": end.error} if end.error else {})) + "\n")
        elif end.content or not end.error:
            _write("" if end.content.endswith("\n") else "\n")

    def notice(self, text: str) -> None:
        print_line(text, error=True)

    def abandon(self) -> None:
        """Nobody reads standard output any more."""
        discard(sys.stdout)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _line_editor() -> ModuleType | None:
    """With it `input` edits lines and remembers them until the end; not every Python has it."""
    try:
        import readline
    except ImportError:
        return None
    return readline
