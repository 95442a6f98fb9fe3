"""OpenAI's response objects, chunks and usage. Pure: deltas in, dictionaries and SSE bytes out."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from hydra.http.answers import Answer
from hydra.http.openai_logprobs import chat_logprobs, text_logprobs
from hydra.http.openai_request import ApiRequest
from hydra.http.teller import Delta, TokenShown
from hydra.text.vocabulary import Vocabulary

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


# Ends of lines to Unicode, and to parsers that split by its rules; none to JSON, which may hold them raw. The others
# (form feeds and their like) are control characters, which are escaped in any case.
LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\u2028\u2029\u0085")


def json_bytes(content: Any) -> bytes:
    """JSON in one line, whoever counts the lines."""
    written = orjson.dumps(content)
    for end, escaped in LINE_ENDS:
        written = written.replace(end, escaped)  # the same object where there is none
    return written


def sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(content) + b"\n\n"


@attrs.define
class Writer:
    """Everything one response says. Counts usage as it goes."""

    request: ApiRequest
    answers: tuple[Answer, ...]
    vocabulary: Vocabulary
    id: str = attrs.field(init=False)
    created: int = attrs.field(factory=lambda: int(time.time()), init=False)
    _tokens: int = attrs.field(default=0, init=False)
    _cached: dict[int, int] = attrs.field(factory=dict, init=False)
    _begun: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex

    @property
    def chat(self) -> bool:
        return self.request.kind == "chat"

    def count(self, delta: Delta) -> None:
        """Of an answer's prompt, what was cached is said with its first token."""
        self._tokens += len(delta.tokens)
        if delta.tokens:
            self._cached.setdefault(delta.index, delta.tokens[0].cached_tokens)

    def usage(self) -> dict[str, Any]:
        """A prompt is counted once, however many answers it has; two equal prompts are two.

        Cached is what none of its answers had to compute: one may find there what another has just left.
        """
        prompt_tokens = sum(len(answer.prompt) for answer in self.answers if answer.choice == 0)
        cached: dict[int, int] = {}  # by the index of a prompt's first answer
        for answer in self.answers:
            first, cached_tokens = answer.index - answer.choice, self._cached.get(answer.index)
            if cached_tokens is not None:
                cached[first] = min(cached.get(first, len(answer.prompt)), cached_tokens)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": prompt_tokens + self._tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }

    # ------------------------------------------------------------ streaming

    def chunks(self, deltas: Sequence[Delta]) -> bytes:
        """SSE events of what has arrived together: neighbouring deltas of one answer become one event.

        Before the first text of a chat each choice begins, in order: clients keep them in a list and append to it.
        """
        events: list[bytes] = []
        if self.chat and not self._begun:
            self._begun = True
            events += [sse(self._head([self._first_choice(answer.index)], chunk=True)) for answer in self.answers]
        for delta in merged(deltas):
            self.count(delta)
            choice = self._chunk_choice(delta) | self._ids([delta])
            events.append(sse(self._head([choice], chunk=True)))
        return b"".join(events)

    def last_chunks(self) -> bytes:
        if not self.request.include_usage:
            return DONE
        final = self._head([], chunk=True)
        final["usage"] = self.usage()
        return sse(final) + DONE

    def _chunk_choice(self, delta: Delta) -> dict[str, Any]:
        if not self.chat:
            return {
                "index": delta.index,
                "text": delta.text,
                "logprobs": self._logprobs(delta.shown),
                "finish_reason": delta.finish,
            }
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.finish is None else {},
            "logprobs": self._logprobs(delta.shown),
            "finish_reason": delta.finish,
        }

    def _first_choice(self, index: int) -> dict[str, Any]:
        """Of a chat: the role, and no text yet."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | self._ids([])

    # ------------------------------------------------------------ in one piece

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        by_answer: dict[int, list[Delta]] = {}
        for delta in deltas:
            self.count(delta)
            by_answer.setdefault(delta.index, []).append(delta)
        choices = []
        for answer in self.answers:
            own = by_answer.get(answer.index, [])
            text = "".join(delta.text for delta in own)
            finish = next((delta.finish for delta in reversed(own) if delta.finish), None)
            shown = None
            if self.request.sampling.logprobs is not None:
                shown = tuple(token for delta in own for token in delta.shown or ())
            choices.append(self._whole_choice(answer.index, text, finish, shown) | self._ids(own))
        return {**self._head(choices, chunk=False), "usage": self.usage()}

    def _whole_choice(
        self, index: int, text: str, finish: str | None, shown: tuple[TokenShown, ...] | None
    ) -> dict[str, Any]:
        if not self.chat:
            return {
                "index": index,
                "text": text,
                "logprobs": self._logprobs(shown),
                "finish_reason": finish,
            }
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(shown),
            "finish_reason": finish,
        }

    # ------------------------------------------------------------ parts

    def _head(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.request.model, "choices": choices}
        if chunk and (self.request.include_usage or self.request.continuous_usage):
            head["usage"] = self.usage() if self.request.continuous_usage else None
        return head

    def _logprobs(self, shown: Sequence[TokenShown] | None) -> dict[str, Any] | None:
        if shown is None:
            return None
        return (chat_logprobs if self.chat else text_logprobs)(shown, self.vocabulary)

    def _ids(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The token ids of a choice, for who asked with `return_token_ids`."""
        if not self.request.return_ids:
            return {}
        return {"token_ids": [sampled.token for delta in deltas for sampled in delta.tokens]}


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """Deltas of one answer that follow each other as one."""
    batch: list[Delta] = []
    for delta in deltas:
        last = batch[-1] if batch else None
        if last is None or last.index != delta.index or last.finish is not None:
            batch.append(delta)
            continue
        shown = None if last.shown is None and delta.shown is None else (last.shown or ()) + (delta.shown or ())
        batch[-1] = attrs.evolve(
            last,
            text=last.text + delta.text,
            tokens=last.tokens + delta.tokens,
            finish=delta.finish,
            shown=shown,
        )
    return batch
