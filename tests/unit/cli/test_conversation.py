"""A conversation without a cluster and without a terminal: lines and pieces in, requests and text out."""

import pytest

from hydra.cli.chat.conversation import (
    HELP,
    AnswerEnded,
    AnswerFailed,
    AnswerPiece,
    AnswerStopped,
    AskModel,
    AskModels,
    Conversation,
    LeaveChat,
    LineTyped,
    ModelsListed,
    ModelsUnknown,
    Notice,
    ShowEnd,
    ShowPiece,
)
from hydra.cli.terminal_text import in_one_line, well_formed, without_controls

FAILED = AnswerFailed(message="no\nroom", code="does_not_fit", exit_code=3)


def say(conversation, text, *events):
    """Types a line that is a question; returns what was sent, and the effects of what came back."""
    (asked,) = conversation.handle(LineTyped(text))
    assert isinstance(asked, AskModel)
    return asked.body["messages"], [effect for event in events for effect in conversation.handle(event)]


def contents(messages):
    return [message["content"] for message in messages]


def test_a_question_is_sent_with_all_that_was_said():
    conversation = Conversation("m", "be brief")
    first, effects = say(conversation, "hi\n", AnswerPiece("a"), AnswerPiece("b"), AnswerEnded("stop"))
    assert first == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert effects == [
        ShowPiece("a"),
        ShowPiece("b"),
        ShowEnd(model="m", content="ab", finish_reason="stop"),
    ]
    second, _ = say(conversation, "more")
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert contents(second) == ["be brief", "hi", "ab", "more"]


ENDS = {"stopped": AnswerStopped(), "failed": FAILED, "ended": AnswerEnded("stop")}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("pieces", [(), ("x", " y")])
def test_the_history_holds_what_was_shown(pieces, end):
    """Turns alternate whatever happens; an answer that is whole counts also where it is empty."""
    conversation = Conversation("m")
    say(conversation, "hi", *map(AnswerPiece, pieces), ENDS[end])
    messages, _ = say(conversation, "more")
    kept = ["hi", "".join(pieces)] if pieces or end == "ended" else []
    assert contents(messages) == [*kept, "more"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"][-len(messages) :]


def test_an_answer_that_fails_is_told_in_one_line_and_ends():
    conversation = Conversation("m")
    _, (end, notice) = say(conversation, "hi", FAILED)
    assert end.finish_reason == "error" and end.error == {"message": "no\nroom", "code": "does_not_fit"}
    assert notice == Notice("error: no room (python -m hydra status shows who is there)")
    assert conversation.exit_code == 3


def test_a_stop_that_comes_a_moment_late_is_none():
    conversation = Conversation("m")
    say(conversation, "hi", AnswerPiece("x"), AnswerEnded("stop"))
    assert conversation.handle(AnswerStopped()) == (Notice("(stopped)"),)
    assert contents(say(conversation, "more")[0]) == ["hi", "x", "more"]


def test_an_answer_that_was_cut_says_so():
    _, effects = say(Conversation("m"), "hi", AnswerEnded("length"))
    assert effects[0].finish_reason == "length" and "cut" in effects[1].text


def test_commands():
    conversation = Conversation("m", "first")
    say(conversation, "hi", AnswerPiece("x"), AnswerEnded("stop"))
    (forgotten,) = conversation.handle(LineTyped("/clear"))
    assert "/system" in forgotten.text
    assert contents(say(conversation, "more", AnswerStopped())[0]) == ["first", "more"]
    conversation.handle(LineTyped("/system  speak plainly \n"))
    assert contents(say(conversation, "more", AnswerStopped())[0]) == ["speak plainly", "more"]
    conversation.handle(LineTyped("/system"))
    assert contents(say(conversation, "more", AnswerStopped())[0]) == ["more"]
    assert conversation.handle(LineTyped("/exit")) == (LeaveChat(),)
    assert conversation.handle(LineTyped("/help")) == tuple(map(Notice, HELP))
    assert {line.split()[0] for line in HELP if line.startswith("/")} == {*conversation._commands(), "//..."}
    assert conversation.exit_code == 0


@pytest.mark.parametrize("line", ["", "\n", "  \t\r\n"])
def test_an_empty_line_asks_nothing(line):
    assert Conversation("m").handle(LineTyped(line)) == ()


def test_what_is_no_command_is_not_sent_by_accident():
    conversation = Conversation("m")
    (notice,) = conversation.handle(LineTyped("/usr/bin is what?"))
    assert "/usr/bin" in notice.text and "//usr/bin" in notice.text and conversation.exit_code == 2
    assert contents(say(conversation, "//usr/bin is what?")[0]) == ["/usr/bin is what?"]


def test_models_are_listed_and_chosen():
    conversation = Conversation("a")
    assert conversation.handle(LineTyped("/model")) == (AskModels(""),)
    listed = conversation.handle(ModelsListed(models=("a", "b\x1b[1m"), wanted=""))
    assert listed == (Notice("* a"), Notice("  b\\x1b[1m"))
    assert conversation.handle(LineTyped("/model  b ")) == (AskModels("b"),)
    (refused,) = conversation.handle(ModelsListed(models=("a",), wanted="b"))
    assert refused.text.startswith("error: ") and conversation.model == "a" and conversation.exit_code == 7
    conversation.handle(ModelsListed(models=("a", "b"), wanted="b"))
    assert conversation.model == "b"
    (unknown,) = conversation.handle(ModelsUnknown(FAILED))
    assert "no room" in unknown.text and conversation.exit_code == 3 and conversation.model == "b"


def test_everything_that_a_terminal_would_obey_is_visible():
    for code in range(0x2100):
        shown = without_controls(chr(code))
        assert shown.isprintable() or shown in "\n\t" or code >= 0xA0, code
    assert without_controls("\x1b[2J\x9b1m\x00\x7f") == "\\x1b[2J\\x9b1m\\x00\\x7f"
    assert without_controls("line\r\nover\rwritten") == "line\noverwritten"
    assert without_controls("a\u202eb\u2066c") == "a\\u202eb\\u2066c"
    assert without_controls("half \ud83d of one") == "half \ufffd of one"
    kept = "tab\tüñ 日本 שלום 👩‍👩‍👧 é"
    assert without_controls(kept) == kept
    assert in_one_line(" two\n lines\x1b ") == "two lines\\x1b"


def test_what_is_typed_can_be_sent():
    assert well_formed("\udcff \ud83d\ude00 é") == "\ufffd 😀 é"
    assert contents(say(Conversation("m", "\udcff"), "\udcfe")[0]) == ["\ufffd", "\ufffd"]
