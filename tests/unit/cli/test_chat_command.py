"""`chat` before a small server: pipes in tests without a terminal, a pseudo terminal where Ctrl-C is pressed."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from hydra.cli.main import cli
from hydra.complaint import Complaint
from tests.unit.cli.chat_server import PING, ChatServer, Hanging, answer, chat_server, error, piece

ROOT = Path(__file__).parents[3]
WITHIN_S = 20.0


@pytest.fixture
def cluster() -> Iterator[ChatServer]:
    with chat_server() as served:
        yield served


def chat(cluster: ChatServer, typed: str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["chat", "--url", cluster.url, *words], input=typed, standalone_mode=False)


def test_lines_in_are_answers_out_with_their_history(cluster):
    cluster.answers += [piece("a ") + PING + answer("cat\n", "purrs"), answer("again\n")]
    done = chat(cluster, "hi\n\nmore\n", "--system", "be brief")
    assert (done.stdout, done.stderr, done.exit_code) == ("a cat\npurrs\nagain\n", "", 0)
    assert [asked["model"] for asked in cluster.asked] == ["small", "small"]
    assert all(asked["stream"] is True for asked in cluster.asked)
    told = [(message["role"], message["content"]) for message in cluster.asked[1]["messages"]]
    assert told == [("system", "be brief"), ("user", "hi"), ("assistant", "a cat\npurrs"), ("user", "more")]


def test_as_json_each_answer_is_a_line(cluster):
    cluster.answers += [answer("a\nb", finish="length"), (400, error("too long", "context_length_exceeded"))]
    done = chat(cluster, "hi\nmore", "--json", "--model", "large")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {"model": "large", "content": "a\nb", "finish_reason": "length"}
    assert second["error"] == {"message": "too long", "code": "context_length_exceeded"} and second["content"] == ""
    assert "cut" in done.stderr and "/clear" in done.stderr.splitlines()[1] and done.exit_code == 2


@pytest.mark.parametrize(
    ("fault", "shown", "helps", "exit_code"),
    [
        ((503, error("being loaded", "loading")), "being loaded", "try again in 7 s", 5),
        ((404, error("no model", "model_not_found")), "no model", "/model", 7),
        ((401, error("who are you?", None)), "who are you?", "", 6),
        ((200, {"object": "chat.completion"}), "no events to follow", "this version", 5),
        ((502, {"proxy": "says no"}), "is no Hydra", "--url", 5),
        (b"data: " + json.dumps(error("the\x1b[2J disk\nis full", "does_not_fit")).encode() + b"\n\n",
         "the\\x1b[2J disk is full", "status", 3),
        (b"data: []\n\n", "is no Hydra", "--url", 5),
        (b'data: {"choices": [{"delta": {"content": 7}, "finish_reason": null}]}\n\n', "is no Hydra", "--url", 5),
        (PING, "broke off", "", 5),
    ],
)  # fmt: skip
def test_an_error_is_one_line_that_helps_and_the_conversation_goes_on(cluster, fault, shown, helps, exit_code):
    cluster.answers += [fault, answer("fine")]
    done = chat(cluster, "hi\nmore\n")
    assert done.stdout == "fine\n" and done.exit_code == exit_code, "of the last error"
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and shown in line and helps in line and "\x1b" not in line
    assert [message["content"] for message in cluster.asked[1]["messages"]] == ["more"], "turns alternate"


def test_what_had_come_of_an_answer_that_broke_off_stays(cluster):
    cluster.answers += [piece("half "), answer("whole")]
    done = chat(cluster, "hi\nmore\n")
    assert done.stdout == "half \nwhole\n" and "broke off" in done.stderr
    assert [message["content"] for message in cluster.asked[1]["messages"]] == ["hi", "half ", "more"]


def test_another_model_is_chosen_by_its_name(cluster):
    cluster.answers.append(answer("yes"))
    done = chat(cluster, "/model other\n/model large\nhi\n/model\n/exit\nhi\n")
    assert cluster.asked[0]["model"] == "large" and len(cluster.asked) == 1
    lines = done.stderr.splitlines()
    assert "small, large" in lines[0] and lines[2:] == ["  small", "* large"]
    assert done.exit_code == 7, "the first was none"


def test_nobody_there_is_a_complaint():
    gone = CliRunner().invoke(cli, ["chat", "--url", "http://127.0.0.1:9"], input="hi\n")
    assert isinstance(gone.exception, Complaint) and gone.exception.exit_code == 5


def test_a_model_that_is_not_served_is_a_complaint_with_those_that_are(cluster):
    named = chat(cluster, "hi\n", "--model", "huge").exception
    assert isinstance(named, Complaint) and named.exit_code == 7 and "small, large" in named.cause
    cluster.models = ()
    none = chat(cluster, "hi\n").exception
    assert isinstance(none, Complaint) and none.exit_code == 7 and "hydra load" in none.fix
    assert not cluster.asked


def test_a_models_text_moves_no_cursor(cluster):
    cluster.answers.append(answer("\x1b]0;title\x07red\x9b31m\r\nüñ 🎉\u202egnp.exe\ttab"))
    done = chat(cluster, "hi\n")
    assert done.stdout == "\\x1b]0;title\\x07red\\x9b31m\nüñ 🎉\\u202egnp.exe\ttab\n"


class Terminal:
    """`chat` at a pseudo terminal."""

    def __init__(self, url: str) -> None:
        self.near, self.far = pty.openpty()
        # Who leads a session without a terminal gets the first one that it opens.
        argv = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(self.far), sys.executable, "-m", "hydra", "chat"]
        self.process = subprocess.Popen(
            [*argv, "--url", url],
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.near, text.encode())

    def await_text(self, text: str) -> None:
        """Forgets what was seen up to there."""
        deadline_s = time.monotonic() + WITHIN_S
        while text not in self.seen:
            assert select.select([self.near], [], [], max(0.0, deadline_s - time.monotonic()))[0], self.seen
            self.seen += os.read(self.near, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def press_ctrl_c(self) -> None:
        """Not until the program waits for a key: readline overlooks a signal between two, until the next one."""
        deadline_s = time.monotonic() + WITHIN_S
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline_s
            os.sched_yield()
        self.type("\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.near)
        os.close(self.far)


def test_ctrl_c_stops_the_answer_then_empties_the_line_then_leaves(cluster):
    endless = Hanging(piece("one "))
    cluster.answers += [endless, answer("two")]
    terminal = Terminal(cluster.url)
    try:
        terminal.await_text("Ctrl-D leaves")
        terminal.await_text("> ")
        terminal.type("hi\r")
        terminal.await_text("one ")
        terminal.press_ctrl_c()
        terminal.await_text("(stopped)")
        assert endless.left.wait(WITHIN_S), "nobody reads on"
        terminal.await_text("> ")
        terminal.type("never mind")
        terminal.await_text("never mind")
        terminal.press_ctrl_c()
        terminal.await_text("> ")
        terminal.type("more\r")
        terminal.await_text("two")
        terminal.await_text("> ")
        terminal.press_ctrl_c()
        assert terminal.process.wait(WITHIN_S) == 0
        assert [message["content"] for message in cluster.asked[1]["messages"]] == ["hi", "one ", "more"]
    finally:
        terminal.close()
