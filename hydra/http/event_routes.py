"""GET /api/events: the cluster's journal, as a JSON list or as a stream of server-sent events that never ends.

A stream can be taken up again where it broke: each event's id goes back as Last-Event-ID. What the ring has forgotten
meanwhile is told as an event of type `gap`. Whoever follows is asked for by this frontend, so the coordinator keeps
nothing for them.
"""

from collections.abc import AsyncIterator
from typing import Any

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from hydra.http.api import Api, json_response
from hydra.http.openai_response import PING, json_bytes
from hydra.protocol.journal_story import stories_of
from hydra.protocol.journal_text import fields_of, sentence_of
from hydra.protocol.limits import COUNT_MAX, NAME_MAX, UINT32_MAX
from hydra.protocol.messages.journal import JournalReply, RecordedEntry
from hydra.protocol.refusal import RefusalError, refuse

ASK_EVERY_S = 0.5
PING_AFTER_S = 15.0
RECONNECT_MS = 2000
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def add_event_routes(app: QuartTrio, api: Api) -> None:
    @app.get("/api/events")
    async def events() -> Response:
        reader = _Reader(api, _conditions())
        after = _last_event_id()
        if not _wants_stream():
            return json_response(await reader.list_all(after))
        first = await reader.ask(after)  # a refusal can still be a status
        response = Response(reader.stream(after, first), headers=HEADERS)
        response.timeout = None  # the framework would cut every stream after a minute
        return response


def _wants_stream() -> bool:
    follow = request.args.get("follow", "true")
    if follow not in ("true", "false"):
        raise refuse("invalid_value", "follow must be true or false", param="follow")
    return follow == "true" and "text/event-stream" in request.headers.get("Accept", "")


def _conditions() -> dict[str, Any]:
    """What the query asks for. Raises RefusalError."""
    found: dict[str, Any] = {}
    for name in ("session", "node"):
        value = request.args.get(name, "")
        if len(value) > NAME_MAX:
            raise refuse("invalid_value", f"{name} has more than {NAME_MAX} characters", param=name)
        found[name] = value
    route = request.args.get("route", "")
    if route:
        found["route"] = _number(route, UINT32_MAX, "route")
    return found


def _last_event_id() -> int:
    return _number(request.headers.get("Last-Event-ID", "") or "0", COUNT_MAX, "Last-Event-ID")


def _number(text: str, most: int, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most):
        raise refuse("invalid_value", f"{name} must be a number of at most {most}", param=name)
    return int(text)


@attrs.define(eq=False)
class _Reader:
    """One request's way through the journal."""

    api: Api
    conditions: dict[str, Any]

    async def ask(self, after: int) -> JournalReply:
        return await self.api.cluster.journal(after, **self.conditions)

    async def list_all(self, after: int) -> dict[str, Any]:
        """All there is now; of one session with its stories."""
        entries: list[RecordedEntry] = []
        reply = await self.ask(after)
        gap = _gap(after, reply)
        while True:
            entries += reply.entries
            if not reply.more:
                break
            reply = await self.ask(entries[-1].id)
        content: dict[str, Any] = {"events": [event_of(entry) for entry in entries]}
        if gap is not None:
            content["gap"] = gap
        if self.conditions["session"]:
            stories = stories_of(entries, self.conditions["session"])
            content["stories"] = [[attrs.asdict(line) for line in story] for story in stories]
        return content

    async def stream(self, after: int, reply: JournalReply | None) -> AsyncIterator[bytes]:
        """Until the server stops or the client leaves. While nobody answers, pings go out."""
        yield b"retry: %d\n\n" % RECONNECT_MS
        seen, said_s = after, trio.current_time()
        while True:
            content = b""
            if reply is not None:
                gap = _gap(seen, reply)
                if gap is not None:
                    content += b"event: gap\ndata: " + json_bytes(gap) + b"\n\n"
                    after = 0 if after > reply.newest else after
                content += b"".join(_sse(entry) for entry in reply.entries)
                after = reply.entries[-1].id if reply.entries else after
                seen = after if reply.more else reply.newest
            if not content and trio.current_time() - said_s > PING_AFTER_S:
                content = PING
            if content:
                yield content
                said_s = trio.current_time()
            if reply is None or not reply.more:
                with trio.move_on_after(ASK_EVERY_S):
                    await self.api.shutdown.begun.wait()
                    return
            try:
                reply = await self.ask(after)
            except RefusalError:
                reply = None  # between two coordinators


def _gap(seen: int, reply: JournalReply) -> dict[str, Any] | None:
    """What is missing between the last id that was seen and the oldest that is left."""
    if not seen or reply.oldest - 1 <= seen <= reply.newest:
        return None
    return {"after": seen, "oldest": reply.oldest, "reason": "the events between are no longer in the journal"}


def event_of(recorded: RecordedEntry) -> dict[str, Any]:
    entry = recorded.entry
    head = {"id": recorded.id, "time": recorded.time_s, "process": recorded.process}
    return head | fields_of(entry) | {"text": sentence_of(entry)}


def _sse(recorded: RecordedEntry) -> bytes:
    return b"id: %d\ndata: " % recorded.id + json_bytes(event_of(recorded)) + b"\n\n"
