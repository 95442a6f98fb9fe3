"""The cluster's journal over HTTP: a list, a stream that can be taken up again, and what was missed."""

import attrs
import pytest
import trio

from hydra.actors.core.histogram import Histogram
from hydra.http.cluster_routes import prometheus
from hydra.http.event_routes import ASK_EVERY_S
from hydra.protocol.messages.journal import JournalEntry
from hydra.simulation.asgi_client import ask, exchange

LOST = JournalEntry(kind="lost", node="w1", role="worker", reason="signal 9")
WAITS = JournalEntry(kind="session_interrupted", session=7, response_id="chatcmpl-x", model_id="m", took_s=0.5)
STREAM = ((b"accept", b"text/event-stream"),)


@pytest.fixture
def ring(cluster):
    for number in range(3):
        cluster.ring.add(attrs.evolve(LOST, node=f"w{number}"), 10.0 + number, "coordinator")
    return cluster.ring


def blocks(exchange):
    return [block for block in exchange.body.decode().split("\n\n") if block and not block.startswith((":", "retry"))]


async def test_a_list_of_all_there_is(app, ring):
    answer = await ask(app, "GET", "/api/events")
    first = answer.json()["events"][0]
    assert answer.status == 200 and len(answer.json()["events"]) == 3 and "gap" not in answer.json()
    assert first["id"] == 1 and first["time"] == 10.0 and first["process"] == "coordinator"
    assert first["kind"] == "lost" and first["node"] == "w0" and first["text"] == "lost w0 (signal 9)"
    assert "session" not in first, "what a kind does not fill is left out"


async def test_conditions_are_passed_on_and_checked(app, ring):
    ring.add(WAITS, 14.0, "f")
    for query, expected in {"node=w1": [2], "session=chatcmpl-x": [4], "session=7": [4], "route=3": []}.items():
        answer = await ask(app, "GET", f"/api/events?{query}")
        assert [event["id"] for event in answer.json()["events"]] == expected, query
    for query in ("route=x", "route=-1", f"route={2**40}", f"node={'x' * 300}", "follow=maybe"):
        answer = await ask(app, "GET", f"/api/events?{query}")
        assert answer.status == 400 and answer.json()["error"]["param"] in query, query
    assert (await ask(app, "GET", "/api/events", headers=((b"last-event-id", b"abc"),))).status == 400


async def test_a_session_comes_with_its_stories(app, ring):
    ring.add(WAITS, 14.0, "f")
    ring.add(attrs.evolve(WAITS, kind="session_resumed", took_s=1.5), 15.0, "f")
    (story,) = (await ask(app, "GET", "/api/events?session=chatcmpl-x")).json()["stories"]
    assert sum(line["step_s"] for line in story) == pytest.approx(1.5)
    assert set(story[0]) == {"time_s", "step_s", "text"}


async def test_a_stream_goes_on_with_what_comes(app, ring, autojump_clock):
    async with exchange(app, "GET", "/api/events", headers=STREAM) as answer:
        await answer.until(lambda a: len(blocks(a)) == 3)
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
        assert blocks(answer)[0].startswith("id: 1\ndata: {")
        ring.add(WAITS, 14.0, "f")
        await answer.until(lambda a: len(blocks(a)) == 4)
        await trio.sleep(40)
        assert len(blocks(answer)) == 4 and answer.body.count(b": ping") >= 2, "nothing is said twice"


async def test_a_stream_is_taken_up_again_where_it_broke(app, ring, autojump_clock):
    async with exchange(app, "GET", "/api/events", headers=(*STREAM, (b"last-event-id", b"2"))) as answer:
        await answer.until(lambda a: blocks(a))
        assert [block.split("\n")[0] for block in blocks(answer)] == ["id: 3"]


@pytest.mark.parametrize("last", [b"1", b"900"], ids=["forgotten", "of another life"])
async def test_what_was_missed_is_told_as_an_event(app, ring, last, autojump_clock):
    ring._entries.popleft()
    ring._entries.popleft()
    headers = (b"last-event-id", last)
    async with exchange(app, "GET", "/api/events", headers=(*STREAM, headers)) as answer:
        await answer.until(lambda a: len(blocks(a)) == 2)
        gap, event = blocks(answer)
        assert gap.startswith("event: gap\ndata: ") and '"oldest":3' in gap.replace(" ", "")
        assert event.startswith("id: 3"), "it was left in the ring"
    assert (await ask(app, "GET", "/api/events", headers=(headers,))).json()["gap"]["after"] == int(last)


async def test_a_stream_outlives_a_coordinator_and_ends_with_the_server(app, cluster, ring, shutdown, autojump_clock):
    async with exchange(app, "GET", "/api/events", headers=STREAM) as answer:
        await answer.until(lambda a: len(blocks(a)) == 3)
        cluster.journal_fails = 3
        await trio.sleep(5 * ASK_EVERY_S)
        ring.add(WAITS, 14.0, "f")
        await answer.until(lambda a: len(blocks(a)) == 4)
        shutdown.begun.set()
        await answer.end()
    assert (await ask(app, "GET", "/api/events?follow=false", headers=STREAM)).json()["events"], "a list, if so asked"


async def test_without_a_coordinator_the_status_says_so(app, cluster):
    cluster.journal_fails = 1
    assert (await ask(app, "GET", "/api/events", headers=STREAM)).status == 503


async def test_the_door_is_the_same(app, ring):
    assert (await ask(app, "GET", "/api/events", headers=((b"host", b"evil.example"),))).status == 403


async def test_an_answer_goes_by_the_id_that_its_reader_gets(app, cluster):
    answer = await ask(app, "POST", "/v1/completions", {"model": "m", "prompt": "hi", "n": 2})
    assert {request.response_id for request in cluster.requests} == {answer.json()["id"]}


def test_a_histogram_is_written_as_prometheus_reads_it():
    histogram = Histogram("hydra_pause_seconds", "Pauses.", bounds=(0.5, 2.0))
    for value in (0.5, 0.6, 1.0, 9.0):
        histogram.observe(value)
    assert prometheus((histogram.sample(("frontend", "f")),)).splitlines() == [
        "# HELP hydra_pause_seconds Pauses.",
        "# TYPE hydra_pause_seconds histogram",
        'hydra_pause_seconds_bucket{frontend="f",le="0.5"} 1',
        'hydra_pause_seconds_bucket{frontend="f",le="2"} 3',
        'hydra_pause_seconds_bucket{frontend="f",le="+Inf"} 4',
        'hydra_pause_seconds_sum{frontend="f"} 11.1',
        'hydra_pause_seconds_count{frontend="f"} 4',
    ]
