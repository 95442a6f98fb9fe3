"""`chat`: the command, and the loop that carries lines to a Conversation and its wishes to the cluster."""

import sys
from contextlib import closing

import attrs
import click

from hydra.cli.chat.answer_stream import list_models, served_models, stream_answer
from hydra.cli.chat.conversation import (
    AnswerStopped,
    AskModel,
    AskModels,
    ChatEffect,
    ChatEvent,
    Conversation,
    LeaveChat,
    LineTyped,
    Notice,
    ShowEnd,
    ShowPiece,
)
from hydra.cli.chat.terminal import ChatTerminal
from hydra.cli.cluster import DEFAULT_URL
from hydra.cli.terminal_text import in_one_line
from hydra.complaint import Complaint


@click.command("chat")
@click.option("--model", default="", help="Who is to answer (default: the first model that is served).")
@click.option("--system", default="", metavar="TEXT", help="What the model is told before everything else.")
@click.option("--json", "as_json", is_flag=True, help="Each answer as one JSON object a line, when it is over.")
@click.option("--url", default=DEFAULT_URL, show_default=True, envvar="HYDRA_URL")
def chat_command(model: str, system: str, as_json: bool, url: str) -> None:
    """Talk to a model of a running cluster. /help lists what else can be typed.

    Ctrl-C stops the answer; on an empty line, like the end of input, it ends the conversation. Without a terminal each
    line of standard input is a message, answers go to standard output, and the exit status is that of the last error.
    """
    conversation = Conversation(choose_model(served_models(url), model, url), system)
    terminal = ChatTerminal.open(as_json=as_json)
    if terminal.interactive:
        terminal.notice(f"{in_one_line(conversation.model)} at {url}; /help for help, Ctrl-D leaves")
    ChatLoop(conversation, terminal, url).run()
    sys.exit(0 if terminal.interactive else conversation.exit_code)


def choose_model(served: tuple[str, ...], wanted: str, url: str) -> str:
    """Raises Complaint (exit 7)."""
    if not served:
        fix = "load one: python -m hydra load MODEL; python -m hydra ps shows what is being loaded"
        raise Complaint(f"no model is served at {url}", "none is loaded", fix, 7)
    if wanted and wanted not in served:
        there = ", ".join(map(in_one_line, served))
        raise Complaint(f"no model {wanted!r} is served at {url}", f"there are: {there}", "choose one of them", 7)
    return wanted or served[0]


@attrs.define(eq=False)
class ChatLoop:
    """One conversation at one terminal."""

    conversation: Conversation
    terminal: ChatTerminal
    url: str
    _over: bool = attrs.field(default=False, init=False)

    def run(self) -> None:
        try:
            while not self._over and (line := self.terminal.read_line()) is not None:
                try:
                    self._hand(LineTyped(line))
                except KeyboardInterrupt:
                    self._hand(AnswerStopped())
        except KeyboardInterrupt:
            return  # while nothing was to be stopped, or twice in a moment
        except BrokenPipeError:
            self.terminal.abandon()

    def _hand(self, event: ChatEvent) -> None:
        for effect in self.conversation.handle(event):
            self._carry_out(effect)

    def _carry_out(self, effect: ChatEffect) -> None:
        match effect:
            case AskModel():
                self._ask(effect)
            case AskModels(wanted=wanted):
                self._hand(list_models(self.url, wanted))
            case ShowPiece(text=text):
                self.terminal.show_piece(text)
            case ShowEnd():
                self.terminal.show_end(effect)
            case Notice(text=text):
                self.terminal.notice(text)
            case LeaveChat():
                self._over = True

    def _ask(self, request: AskModel) -> None:
        """Reads the answer to its end. Whatever ends that earlier, the connection is closed first."""
        with closing(stream_answer(self.url, request.body)) as events:
            for event in events:
                self._hand(event)
