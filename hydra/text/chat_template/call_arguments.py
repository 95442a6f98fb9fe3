"""The arguments of a function call that a model made earlier, in the form that a chat template writes them from. Pure.

OpenAI's API carries them as a string of JSON. Most templates want the object that it holds (`| tojson`, `.items()`),
some glue the string as it is (`'...' + arguments`), some take either. Which one a template wants is tried, not guessed
from its source: two small chats are rendered, with the object and with the string, and searched for what was said.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import orjson

from hydra.protocol.refusal import RefusalError
from hydra.text.json_depth import JSON_DEPTH_MAX, json_depth

RAW = "raw_arguments"
KEY, VALUE = "needle_key", "needle_value"
TRIED = {KEY: VALUE}
TRIED_TEXT = json.dumps(TRIED)

Render = Callable[[Sequence[Mapping[str, Any]]], str]


@attrs.frozen
class CallForm:
    """How a template wants an assistant's turn with calls."""

    arguments: Literal["object", "text", "either"] = "object"
    content: str | None = ""  # of a turn that has calls and says nothing

    @classmethod
    def of(cls, render: Render) -> "CallForm":
        """By trial. A template that writes no call in any of them is given what most want."""
        for content in ("", None):  # some write calls only where the content is none
            for chat in _chats(content):
                with_text = TRIED_TEXT in _try(render, chat(TRIED_TEXT))
                written = _try(render, chat(TRIED))
                # A mapping that is printed as it is comes out as Python writes it, which no model was trained on.
                with_object = KEY in written and VALUE in written and str(TRIED) not in written
                if with_text and with_object:
                    return cls("either", content)
                if with_text or with_object:
                    return cls("text" if with_text else "object", content)
        return cls()

    def turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """An assistant's message with calls, as the template wants it."""
        calls = [
            {**call, "function": {**call["function"], "arguments": self.written(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        return {**message, "content": message.get("content") or self.content, "tool_calls": calls}

    def written(self, arguments: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
        """A model may have written anything: no arguments are refused, for they would end the conversation for good.

        As text they stay what they were; nothing at all is `{}`, because what stands around it is JSON. As an object
        they are what the text holds; a text that holds no object is shown to the model whole, as the one value of an
        object: the error that the tool has answered would make no sense beside a call that was made to look right.
        """
        if not isinstance(arguments, str):
            return json.dumps(arguments, ensure_ascii=False) if self.arguments == "text" else arguments
        if not arguments.strip():
            return "{}" if self.arguments == "text" else {}
        if self.arguments == "text":
            return arguments
        held = _object_in(arguments)
        if held is not None:
            return held
        return arguments if self.arguments == "either" else {RAW: arguments}


def _object_in(text: str) -> dict[str, Any] | None:
    """None when it holds none, or one that is nested without end. A JSON null is nothing said, as the empty text is."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if value is None:
        return {}
    return value if isinstance(value, dict) and json_depth(value) <= JSON_DEPTH_MAX else None


def _chats(content: str | None) -> Iterator[Callable[[Any], list[dict[str, Any]]]]:
    """A call that was answered, and one that was not: some templates write or refuse only one of the two."""

    def asked(arguments: Any) -> list[dict[str, Any]]:
        call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": arguments}}
        return [{"role": "user", "content": "Look."}, {"role": "assistant", "content": content, "tool_calls": [call]}]

    def answered(arguments: Any) -> list[dict[str, Any]]:
        answer = {"role": "tool", "tool_call_id": "call00001", "name": "look", "content": "seen"}
        return [*asked(arguments), answer]

    yield answered
    yield asked


def _try(render: Render, chat: list[dict[str, Any]]) -> str:
    """Nothing, where the template refuses or cannot."""
    try:
        return render(chat)
    except RefusalError:
        return ""
