"""The messages of a chat request as a template can be given them. Pure; every refusal names `messages`.

Promises plain JSON of known shapes: roles that templates know, content as one string, calls as `tool_calls`. Shapes of
OpenAI's older API (`function_call`, role `function`) and what its answers bring back (`refusal`) become those. What a
model may have got wrong in an earlier turn is taken as it is: a refusal would end the conversation for good.
"""

from typing import Any

import attrs

from hydra.http.fields import key_name
from hydra.protocol.refusal import RefusalError, refuse

ROLES = ("developer", "system", "user", "assistant", "tool", "function")
CALLS_MAX = 128
CALL_NAME_MAX = 256
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
READ = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "function_call", *THOUGHTS}
INERT = {"annotations"}  # which an answer of the API brings back, and which say nothing to a model
READ_OF_PARTS = {"type", "text", "refusal"}
INERT_OF_PARTS = {"cache_control", "annotations"}
SENSES = {  # kinds of parts that a multimodal model would see or hear, in the shapes of OpenAI's two APIs and of others
    **dict.fromkeys(("image_url", "image", "input_image", "image_embeds", "image_file"), ("image", "vision")),
    **dict.fromkeys(("video_url", "video", "input_video"), ("video", "vision")),
    **dict.fromkeys(("input_audio", "audio_url", "audio"), ("audio", "audio")),
}
READ_OF_CALLS = {"id", "type", "function", "index"}


def history_of(messages: list[Any]) -> tuple[tuple[dict[str, Any], ...], set[str]]:
    """The messages, and the names of what was overlooked in them. Raises RefusalError."""
    history = _History({_id_of(call) for message in messages for call in _list_in(message, "tool_calls")})
    read = tuple(history.message(message, f"messages[{at}]") for at, message in enumerate(messages))
    return read, history.overlooked


def _list_in(message: Any, key: str) -> list[Any]:
    found = message.get(key) if isinstance(message, dict) else None
    return found if isinstance(found, list) else []


def _id_of(call: Any) -> str | None:
    found = call.get("id") if isinstance(call, dict) else None
    return found if isinstance(found, str) else None


@attrs.define
class _History:
    """Reads messages in order. Results in the older shape name a function, so it remembers who was called."""

    taken: set[str | None]  # ids of calls that the client has named itself
    overlooked: set[str] = attrs.field(factory=set, init=False)
    _waiting: list[tuple[str, str]] = attrs.field(factory=list, init=False)  # (function, id) of unanswered calls
    _made: int = attrs.field(default=0, init=False)

    def message(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _no(f"{where} needs a role, one of {', '.join(ROLES)}")
        self._overlook("messages", message, READ | INERT)
        role = message["role"]
        if role == "function":
            return self._function_result(message, where)
        calls = self._calls(message, where)
        read: dict[str, Any] = {"role": role, "content": self._content(message, where)}
        for key in ("name", "tool_call_id"):
            if (value := message.get(key)) is not None:
                read[key] = _text(value, f"{where}.{key}")
        if role == "tool":
            self._waiting = [(name, call) for name, call in self._waiting if call != read.get("tool_call_id")]
        if calls:
            read["tool_calls"] = calls
        thought = next((message[key] for key in THOUGHTS if message.get(key) is not None), None)
        if thought is not None:
            text = _text(thought, f"{where}.reasoning_content")
            read |= {"reasoning_content": text, "thinking": text}  # templates know it by either name
        return read

    def _overlook(self, where: str, content: dict[str, Any], read: set[str]) -> None:
        sent = {key for key, value in content.items() if value is not None}
        self.overlooked |= {f"{where}.{key_name(key)}" for key in sent - read}

    # ------------------------------------------------------------ what is said

    def _content(self, message: dict[str, Any], where: str) -> str:
        """Null from an assistant, whose turn may be only calls, and from a tool that has nothing to tell, is empty.

        Of anybody else it is a mistake, as in OpenAI's API: there is nothing that the model could be shown.
        """
        role, content, refusal = message["role"], message.get("content"), message.get("refusal")
        if content is None and role in ("assistant", "tool", "function"):
            content = ""
        if isinstance(content, list):
            content = "".join(self._part(part, role, where) for part in content)
        if not isinstance(content, str):
            raise _no(f"{where}.content must be a string or a list of text parts")
        if refusal is None:
            return content
        if role != "assistant":
            raise _no(f"{where}.refusal: only an assistant refuses")
        return "\n".join(filter(None, (content, _text(refusal, f"{where}.refusal"))))

    def _part(self, part: Any, role: str, where: str) -> str:
        """A refusal is what the assistant said."""
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            if isinstance(kind, str) and kind in SENSES:
                what, part_of_model = SENSES[kind]
                raise _no(
                    f"{where}.content: {what} parts are not supported, because the model's {part_of_model} part is not "
                    f"served, only its text part. Send the text alone"
                )
            raise _no(f"{where}.content: only text parts, and refusals of the assistant, are supported")
        self._overlook("messages.content", part, READ_OF_PARTS | INERT_OF_PARTS)
        return _text(part.get(kind), f"{where}.content: a part's {kind}")

    # ------------------------------------------------------------ what is called

    def _calls(self, message: dict[str, Any], where: str) -> list[dict[str, Any]]:
        calls, older = message.get("tool_calls"), message.get("function_call")
        if (calls or older is not None) and message["role"] != "assistant":
            raise _no(f"{where}: only an assistant makes calls")
        if calls is not None and not (isinstance(calls, list) and len(calls) <= CALLS_MAX):
            raise _no(f"{where}.tool_calls must be a list of at most {CALLS_MAX} calls")
        read = [self._call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls or [])]
        if older is not None and read:
            self.overlooked.add("messages.function_call")  # some servers say the same call in both shapes
        elif older is not None:
            read = [{"id": self._new_id(), "type": "function", "function": _function(older, f"{where}.function_call")}]
        self._waiting += [(call["function"]["name"], call.get("id", "")) for call in read]
        return read

    def _call(self, call: Any, where: str) -> dict[str, Any]:
        if not isinstance(call, dict) or call.get("type") not in (None, "function"):
            raise _no(f"{where} must be of type function, with a function")
        self._overlook("messages.tool_calls", call, READ_OF_CALLS)
        named = {"id": _text(call["id"], f"{where}.id")} if call.get("id") is not None else {}
        return {**named, "type": "function", "function": _function(call.get("function"), f"{where}.function")}

    def _function_result(self, message: dict[str, Any], where: str) -> dict[str, Any]:
        """In the newer shape: a tool's message, with the id of the call that it answers."""
        name = _text(message.get("name"), f"{where}.name")
        call = next((one for one in self._waiting if one[0] == name), None)
        if call is not None:
            self._waiting.remove(call)
        number = (call and call[1]) or self._new_id()
        return {"role": "tool", "content": self._content(message, where), "name": name, "tool_call_id": number}

    def _new_id(self) -> str:
        """Nine letters and digits: there are templates that refuse any other."""
        while True:
            self._made += 1
            call_id = f"call{self._made:05d}"
            if call_id not in self.taken:
                return call_id


def _function(function: Any, where: str) -> dict[str, Any]:
    """Arguments stay as they are: whether they are JSON is not for us to complain about."""
    if not isinstance(function, dict):
        raise _no(f"{where} must be a function's name and arguments")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not 0 < len(name) <= CALL_NAME_MAX:
        raise _no(f"{where}.name must be a string of 1 to {CALL_NAME_MAX} characters")
    if arguments is None:
        arguments = ""
    if not isinstance(arguments, str | dict):
        raise _no(f"{where}.arguments must be a string of JSON")
    return {"name": name, "arguments": arguments}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _no(f"{where} must be a string")
    return value


def _no(message: str) -> RefusalError:
    return refuse("invalid_value", message, param="messages")
