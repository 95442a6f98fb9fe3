"""OpenAI's response objects, chunks and usage. Pure: deltas in, dictionaries and SSE bytes out."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from hydra.http.answers import Answer
from hydra.http.openai_request import ApiRequest
from hydra.http.teller import Delta, TokenShown
from hydra.http.tokenizer import Words

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def sse(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


@attrs.define
class Writer:
    """Everything one response says. Counts usage as it goes."""

    request: ApiRequest
    answers: tuple[Answer, ...]
    words: Words
    id: str = attrs.field(init=False)
    created: int = attrs.field(factory=lambda: int(time.time()), init=False)
    _tokens: int = attrs.field(default=0, init=False)
    _cached: dict[int, int] = attrs.field(factory=dict, init=False)
    _offsets: dict[int, int] = attrs.field(factory=dict, init=False)
    _begun: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex

    @property
    def chat(self) -> bool:
        return self.request.kind == "chat"

    def count(self, delta: Delta) -> None:
        self._tokens += len(delta.ids)
        self._cached.setdefault(delta.index, delta.cached)

    def usage(self) -> dict[str, Any]:
        prompts = {answer.prompt: None for answer in self.answers} if self.request.n > 1 else self.answers
        asked = [prompt if isinstance(prompt, tuple) else prompt.prompt for prompt in prompts]
        prompt_tokens = sum(len(prompt) for prompt in asked)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": prompt_tokens + self._tokens,
            "prompt_tokens_details": {"cached_tokens": min(prompt_tokens, sum(self._cached.values()))},
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
                "logprobs": self._text_logprobs(delta.index, delta.shown),
                "finish_reason": delta.finish,
            }
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.finish is None else {},
            "logprobs": self._chat_logprobs(delta.shown),
            "finish_reason": delta.finish,
        }

    def _first_choice(self, index: int) -> dict[str, Any]:
        """Of a chat: the role, and no text yet."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | self._ids([])

    # ------------------------------------------------------------ in one piece

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        for delta in deltas:
            self.count(delta)
        choices = []
        for answer in self.answers:
            own = [delta for delta in deltas if delta.index == answer.index]
            text = "".join(delta.text for delta in own)
            finish = next((delta.finish for delta in reversed(own) if delta.finish), None)
            shown = None
            if self.request.logprobs is not None:
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
                "logprobs": self._text_logprobs(index, shown),
                "finish_reason": finish,
            }
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._chat_logprobs(shown),
            "finish_reason": finish,
        }

    # ------------------------------------------------------------ parts

    def _head(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.request.model, "choices": choices}
        if chunk and self.request.include_usage:
            head["usage"] = None
        return head

    def _ids(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The token ids of a choice, for who asked with `return_token_ids`."""
        return {"token_ids": [token for delta in deltas for token in delta.ids]} if self.request.return_ids else {}

    def _chat_logprobs(self, shown: tuple[TokenShown, ...] | None) -> dict[str, Any] | None:
        if shown is None:
            return None
        content = []
        for token in shown:
            entry = self._logprob(token.token, token.logprobs.chosen)
            entry["top_logprobs"] = [self._logprob(other, value) for other, value in token.logprobs.top]
            content.append(entry)
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        text = self.words.token_text(token)
        return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode())}

    def _text_logprobs(self, index: int, shown: tuple[TokenShown, ...] | None) -> dict[str, Any] | None:
        if shown is None:
            return None
        texts = [self.words.token_text(token.token) for token in shown]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprobs.chosen, -9999.0) for token in shown],
            "top_logprobs": [
                {self.words.token_text(other): max(value, -9999.0) for other, value in token.logprobs.top}
                for token in shown
            ],
            "text_offset": offsets,
        }


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """Deltas of one answer that follow each other as one."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if last is None or last.index != delta.index or last.finish is not None:
            found.append(delta)
            continue
        shown = None if last.shown is None and delta.shown is None else (last.shown or ()) + (delta.shown or ())
        found[-1] = attrs.evolve(
            last,
            text=last.text + delta.text,
            ids=last.ids + delta.ids,
            finish=delta.finish,
            shown=shown,
        )
    return found
