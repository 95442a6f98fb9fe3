"""`events`: lists, stories and streams, before a small server that answers as a cluster."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from hydra.cli import events as command
from hydra.cli.main import cli
from hydra.complaint import Complaint

EVENTS = [
    {"id": 2, "time": 12.5, "process": "coordinator", "kind": "route_up", "text": "route 1 of m is up"},
    {"id": 3, "time": 11.25, "process": "f", "kind": "session_resumed", "text": "a goes on"},
]
STORY = [
    {"time_s": 11.0, "step_s": 0.0, "text": "the last token"},
    {"time_s": 11.25, "step_s": 0.25, "text": "a goes on"},
]


def sse(*events):
    lines = [
        f"event: gap\ndata: {json.dumps(e)}\n\n" if "id" not in e else f"id: 1\ndata: {json.dumps(e)}\n\n"
        for e in events
    ]
    return ("retry: 1\n\n: ping\n\n" + "".join(lines)).encode()


@pytest.fixture
def cluster():
    """`answers` in their order: a body of bytes is a stream."""
    asked, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Last-Event-ID"), self.headers.get("Accept")))
            status, content = answers.pop(0)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if body is content else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked, answers
        server.shutdown()
        thread.join()


def run(url, *words):
    return CliRunner().invoke(cli, ["events", "--url", url, *words], standalone_mode=False)


def test_a_list_is_in_the_order_of_time(cluster):
    url, asked, answers = cluster
    answers += [(200, {"events": EVENTS})] * 2
    lines = run(url, "--node", "w 1", "--route", "3").stdout.splitlines()
    assert [line[14:] for line in lines] == ["a goes on", "route 1 of m is up"] and lines[0][8:14] == ".250  "
    assert asked[0][0] == "/api/events?node=w+1&route=3"
    assert [json.loads(line)["id"] for line in run(url, "--json").stdout.splitlines()] == [3, 2]
    assert asked[1][0] == "/api/events"


def test_a_session_is_told_as_its_stories(cluster):
    url, _, answers = cluster
    answers += [(200, {"events": EVENTS, "stories": [STORY, STORY]}), (200, {"events": EVENTS, "stories": []})]
    lines = run(url, "--session", "a").stdout.splitlines()
    assert len(lines) == 5 and lines[2] == "" and lines[1].endswith("  +0.250 s  a goes on")
    assert "it was not interrupted" in run(url, "--session", "a").stderr


def test_following_goes_on_where_the_connection_broke(cluster, monkeypatch):
    url, asked, answers = cluster
    answers += [
        (200, sse(EVENTS[0])),
        (200, sse({"reason": "some are missing"}, EVENTS[1])),
        (401, {"error": {"message": "no"}}),
    ]
    waited = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    result = run(url, "--follow")
    assert isinstance(result.exception, Complaint) and result.exception.exit_code == 6
    assert [line[14:] for line in result.stdout.splitlines()] == ["route 1 of m is up", "ing)", "a goes on"]
    assert [last for _, last, _ in asked] == [None, "2", "3"] and len(waited) == 2
    assert all("text/event-stream" in accept for _, _, accept in asked)


def test_nobody_there_is_a_complaint_at_once():
    result = run("http://127.0.0.1:9", "--follow")
    assert isinstance(result.exception, Complaint) and result.exception.exit_code == 5
