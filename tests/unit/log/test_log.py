"""A log line never raises and never waits: what is lost is counted and told, and a crowd of one kind is thinned out."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog

from hydra.log import set_up as logging_of_this_process
from hydra.log.log_rate import AT_ONCE, LogRate
from hydra.log.log_sink import LogSink, to_descriptor

ROOT = Path(__file__).parents[3]
SOON_S = 10.0


class Stream:
    """Takes lines; on demand it fails, takes only a part, or lets nobody go on."""

    def __init__(self):
        self.content, self.failure, self.takes = b"", None, 1 << 20
        self.open = threading.Event()
        self.open.set()

    def write(self, content):
        assert self.open.wait(SOON_S)
        if self.failure is not None and self.takes <= 0:
            raise self.failure
        taken = content[: self.takes] if self.failure is not None else content
        self.takes -= len(taken)
        self.content += taken
        return len(taken)

    def fail(self, failure, after_bytes=0):
        self.failure, self.takes = failure, after_bytes


def sink_of(stream, **limits):
    made = LogSink(stream.write, lambda lines, reason: f"lost {lines}: {reason}", **limits)
    made.start()
    return made


FULL, NO_READER = OSError(errno.ENOSPC, "no space left"), BrokenPipeError(errno.EPIPE, "broken pipe")


@pytest.mark.parametrize("failure", [FULL, NO_READER, ValueError("I/O operation on closed file")], ids=repr)
def test_lines_that_cannot_be_written_are_counted_and_told_once(failure):
    stream = Stream()
    sink = sink_of(stream)
    sink.put("one")
    assert sink.flush(SOON_S)
    stream.fail(failure)
    for line in ("two", "three"):
        sink.put(line)
    assert sink.flush(SOON_S) and sink.lost == 2 and stream.content == b"one\n"
    stream.failure = None
    sink.put("four")
    sink.put("five")
    assert sink.flush(SOON_S) and sink.lost == 2
    assert stream.content.decode().splitlines() == ["one", "four", "five", f"lost 2: {failure}"] or (
        stream.content.decode().splitlines() == ["one", "four", f"lost 2: {failure}", "five"]
    )


def test_a_line_that_was_written_in_part_does_not_spoil_the_next_one():
    stream = Stream()
    sink = sink_of(stream)
    stream.fail(FULL, after_bytes=3)
    sink.put("a long line")
    assert sink.flush(SOON_S) and sink.lost == 1
    stream.failure = None
    sink.put("whole")
    assert sink.flush(SOON_S)
    assert stream.content.decode().splitlines() == ["a l", "whole", f"lost 1: {FULL}"]


@pytest.mark.parametrize("limits", [{"lines_max": 3}, {"bytes_max": 3 * len("line 0\n")}])
def test_a_reader_that_stands_still_holds_up_nobody(limits):
    stream = Stream()
    sink = sink_of(stream, **limits)
    stream.open.clear()
    sink.put("in hand")
    while sink._lines:  # until the thread has taken it
        os.sched_yield()
    for number in range(5):
        sink.put(f"line {number}")
    assert sink.lost == 2 and not sink.flush(0.01)
    stream.open.set()
    assert sink.flush(SOON_S)
    told = ["in hand", "line 0", "line 1", "line 2", "lost 2: nobody takes them as fast as they come"]
    assert stream.content.decode().splitlines() == told


def test_a_terminal_that_does_not_block_is_waited_for():
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    sink = LogSink(to_descriptor(write_fd), lambda lines, reason: "")
    sink.start()
    sink.put("x" * (1 << 20))
    got = b""
    while len(got) <= 1 << 20:
        got += os.read(read_fd, 1 << 16)
    assert sink.flush(SOON_S) and sink.lost == 0
    os.close(read_fd)
    os.close(write_fd)


# ---------------------------------------------------------------- the rate


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def shown(rate, event="nonsense", method="warning", **more):
    try:
        return rate(None, method, {"event": event, **more})
    except structlog.DropEvent:
        return None


def test_of_one_kind_some_are_shown_at_once_then_one_a_second():
    clock = Clock()
    rate = LogRate(clock)
    assert [bool(shown(rate, peer=n)) for n in range(AT_ONCE + 5)] == [True] * AT_ONCE + [False] * 5
    assert shown(rate, "another") and shown(rate, method="error"), "other kinds have rates of their own"
    clock.now_s += 1.0
    assert shown(rate)["not_shown"] == "5 more like this" and shown(rate) is None
    clock.now_s += 3600.0
    assert [bool(shown(rate)) for _ in range(AT_ONCE + 1)] == [True] * AT_ONCE + [False]
    assert rate.hidden == 7


def test_who_asks_for_every_line_gets_it():
    rate = LogRate(Clock())
    assert all(shown(rate, method="debug") for _ in range(1000))


def test_an_error_that_is_like_no_other_is_always_shown():
    rate, kinds = LogRate(Clock()), (KeyError, OSError, ZeroDivisionError)

    def failed(kind, text):
        try:
            raise kind(text)
        except kind as why:
            return shown(rate, "a request failed", "error", exc_info=why)

    for number in range(AT_ONCE):
        assert failed(ValueError, str(number))
    assert failed(ValueError, "what it says makes no kind of its own") is None
    assert all(failed(kind, "x") for kind in kinds)


def test_the_table_of_kinds_is_bounded():
    rate = LogRate(Clock(), kinds_max=8)
    for number in range(100):
        assert shown(rate, f"event {number}")
    assert len(rate._buckets) == 8


# ---------------------------------------------------------------- a process


def run(source, **streams):
    argv = [sys.executable, "-c", "import structlog, sys\nfrom hydra.log.set_up import *\n" + source]
    return subprocess.run(argv, cwd=ROOT, timeout=60, check=False, text=True, **streams)


def test_lines_of_a_process_are_data_and_get_out_before_its_end():
    source = "set_up_logging('parent', 'n')\nlog = structlog.get_logger()\nlog.info('hello', x=1)\n"
    source += "class Bad:\n  def __repr__(self): raise ValueError('no')\nlog.error('bad', it=Bad())\n1 / 0\n"
    done = run(source, capture_output=True)
    first, second, *crash = done.stderr.splitlines()
    wanted = {"event": "hello", "x": 1, "role": "parent", "node": "n", "level": "info"}
    assert wanted.items() <= json.loads(first).items()
    assert json.loads(second)["event"] == "bad" and "details cannot be shown" in json.loads(second)["why"]
    assert crash[0].startswith("Traceback") and crash[-1].startswith("ZeroDivisionError") and done.returncode == 1


@pytest.mark.parametrize("streams", ["a full disk", "no reader", "closed"])
def test_a_process_without_a_place_for_its_words_goes_on(streams, tmp_path):
    """Nor does its exit status change."""
    source = (
        "from hydra.log.standard_streams import print_line\nset_up_logging('parent')\nlog = structlog.get_logger()\n"
    )
    source += "for n in range(5): log.warning('line', n=n)\nprint_line('ready')\nflush_log()\n"
    source += f"open({str(tmp_path / 'lost')!r}, 'w').write(str(log_lines_lost()))\nsys.exit(3)\n"
    argv = [sys.executable, "-c", "import structlog, sys\nfrom hydra.log.set_up import *\n" + source]
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    place = os.open("/dev/full", os.O_WRONLY) if streams == "a full disk" else write_fd
    if streams == "closed":
        argv = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv]
    done = subprocess.run(argv, cwd=ROOT, stdout=place, stderr=place, timeout=60, check=False)
    for fd in {write_fd, place}:
        os.close(fd)
    lost = 5 if streams == "closed" else 6  # a print to nowhere is no failure
    assert done.returncode == 3 and int((tmp_path / "lost").read_text()) == lost


def test_without_set_up_a_line_goes_nowhere_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(logging_of_this_process, "_sink", None)
    logging_of_this_process.flush_log()
    assert logging_of_this_process.log_lines_lost() == 0
