"""A conversation with a model, as a pure machine: typed lines and pieces of answers in; requests and text out.

Promises: the history holds what was shown, and only that: of an answer that was stopped or broke off what had come of
it, and of a question that brought nothing neither the question nor an answer, so that turns alternate. Refuses to
know terminals and HTTP.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from hydra.cli.terminal_text import in_one_line, well_formed

EXIT_USAGE, EXIT_NO_MODEL = 2, 7  # of the command line
HELP = (
    "/system TEXT  what the model is told before everything else; without TEXT: nothing any more",
    "/clear        forget the conversation so far",
    "/model NAME   talk to another model, with the same history; without NAME: list them",
    "/help         this",
    "/exit         leave; so does the end of input",
    "//...         a message that begins with one slash",
    "Ctrl-C        stop the answer; on an empty line: leave",
)
# What a person can do about an error, by its code.
REMEDIES = {
    "context_length_exceeded": "/clear forgets the conversation so far",
    "model_not_found": "/model lists what is served",
    "no_workers": "python -m hydra status shows who is there",
    "does_not_fit": "python -m hydra status shows who is there",
    "recovery_deadline": "python -m hydra events tells what happened",
}


# ---------------------------------------------------------------- events


@attrs.frozen
class LineTyped:
    text: str


@attrs.frozen
class AnswerPiece:
    text: str


@attrs.frozen
class AnswerEnded:
    finish_reason: str


@attrs.frozen(kw_only=True)
class AnswerFailed:
    """There is no answer, or no more of it. `remedy` is what helps, where whoever noticed knows it."""

    message: str
    code: str
    exit_code: int
    remedy: str = ""


@attrs.frozen
class AnswerStopped:
    """By the person who asked; perhaps a moment after its end."""


@attrs.frozen(kw_only=True)
class ModelsListed:
    """The answer to AskModels."""

    models: tuple[str, ...]
    wanted: str


@attrs.frozen
class ModelsUnknown:
    """The other answer to AskModels: the list could not be had."""

    failure: AnswerFailed


ChatEvent: TypeAlias = (
    LineTyped | AnswerPiece | AnswerEnded | AnswerFailed | AnswerStopped | ModelsListed | ModelsUnknown
)

# ---------------------------------------------------------------- effects


@attrs.frozen
class AskModel:
    """Send this request; answer AnswerPiece ... and AnswerEnded or AnswerFailed, unless AnswerStopped comes before."""

    body: dict[str, Any]


@attrs.frozen
class AskModels:
    """Which models are there? Answer ModelsListed or ModelsUnknown, with `wanted` as it is."""

    wanted: str = ""


@attrs.frozen
class ShowPiece:
    """A piece of an answer, as the model wrote it."""

    text: str


@attrs.frozen(kw_only=True)
class ShowEnd:
    """The answer is over: all of it, why it is over (stop, length, stopped, error), and the error."""

    model: str
    content: str
    finish_reason: str
    error: dict[str, str] | None = None


@attrs.frozen
class Notice:
    """A line that is no part of an answer."""

    text: str


@attrs.frozen
class LeaveChat:
    """It is over."""


ChatEffect: TypeAlias = AskModel | AskModels | ShowPiece | ShowEnd | Notice | LeaveChat
Effects: TypeAlias = tuple[ChatEffect, ...]


@attrs.define(eq=False)
class Conversation:
    """`exit_code` is that of the last thing that went wrong; 0: nothing did."""

    model: str
    system: str = attrs.field(default="", converter=well_formed)
    exit_code: int = attrs.field(default=0, init=False)
    _turns: list[tuple[str, str]] = attrs.field(factory=list, init=False)  # question, answer
    _question: str | None = attrs.field(default=None, init=False)  # which is being answered
    _shown: list[str] = attrs.field(factory=list, init=False)  # of its answer

    def handle(self, event: ChatEvent) -> Effects:
        match event:
            case LineTyped(text=text):
                return self._take_line(well_formed(text).strip("\r\n"))
            case AnswerPiece(text=text):
                self._shown.append(text)
                return (ShowPiece(text),)
            case AnswerEnded(finish_reason=reason):
                return self._end(reason)
            case AnswerStopped():
                stopped = self._stop("stopped") if self._question is not None else ()
                return (*stopped, Notice("(stopped)"))
            case AnswerFailed():
                error = {"message": event.message, "code": event.code}
                return (*self._stop("error", error), self._fail(event))
            case ModelsListed():
                return self._choose(event.models, event.wanted)
            case ModelsUnknown(failure=failure):
                return (self._fail(failure),)

    # ------------------------------------------------------------ lines

    def _take_line(self, line: str) -> Effects:
        assert self._question is None, "one question at a time"
        if not line.strip():
            return ()
        if line.startswith("//"):
            return self._ask(line[1:])
        if not line.startswith("/"):
            return self._ask(line)
        word, _, argument = line.partition(" ")
        command = self._commands().get(word)
        if command is None:
            self.exit_code = EXIT_USAGE
            return (Notice(f"error: there is no command {word} (/help lists them; /{word} ... sends it as it is)"),)
        return command(argument.strip())

    def _commands(self) -> dict[str, Callable[[str], Effects]]:
        return {
            "/system": self._set_system,
            "/clear": self._clear,
            "/model": lambda wanted: (AskModels(wanted),),
            "/help": lambda _: tuple(Notice(line) for line in HELP),
            "/exit": lambda _: (LeaveChat(),),
        }

    def _set_system(self, text: str) -> Effects:
        self.system = text
        return (Notice("the model is told so from now on" if text else "the model is told nothing beforehand"),)

    def _clear(self, _: str) -> Effects:
        self._turns.clear()
        return (Notice("the conversation so far is forgotten" + (", but not /system" if self.system else "")),)

    def _choose(self, models: Sequence[str], wanted: str) -> Effects:
        if not wanted:
            return tuple(Notice(f"{'*' if model == self.model else ' '} {in_one_line(model)}") for model in models)
        if wanted not in models:
            there = ", ".join(map(in_one_line, models)) or "none"
            self.exit_code = EXIT_NO_MODEL
            return (Notice(f"error: there is no model {in_one_line(wanted)} (those that are there: {there})"),)
        self.model = wanted
        return (Notice(f"{in_one_line(wanted)} answers from now on"),)

    # ------------------------------------------------------------ answers

    def _ask(self, question: str) -> Effects:
        self._question = question
        return (AskModel({"model": self.model, "messages": self._messages(question), "stream": True}),)

    def _messages(self, question: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answer in self._turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": question}]

    def _end(self, reason: str) -> Effects:
        ended = self._close(reason)
        cut = "(cut: the answer is as long as an answer may be; /clear makes room)"
        return (ended, Notice(cut)) if reason == "length" else (ended,)

    def _stop(self, reason: str, error: dict[str, str] | None = None) -> Effects:
        """An answer that is not whole. What has not begun is as if it had never been asked for."""
        return (self._close(reason, error, keep=bool(self._shown)),)

    def _close(self, reason: str, error: dict[str, str] | None = None, *, keep: bool = True) -> ShowEnd:
        assert self._question is not None, "an answer is to a question"
        content = "".join(self._shown)
        if keep:
            self._turns.append((self._question, content))
        self._question, self._shown = None, []
        return ShowEnd(model=self.model, content=content, finish_reason=reason, error=error)

    def _fail(self, failure: AnswerFailed) -> Notice:
        self.exit_code = failure.exit_code
        remedy = REMEDIES.get(failure.code) or failure.remedy
        return Notice("error: " + in_one_line(failure.message) + (f" ({in_one_line(remedy)})" if remedy else ""))
