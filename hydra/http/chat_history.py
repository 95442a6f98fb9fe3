"""The messages of a chat request as a template can be given them. Pure; every refusal names `messages`.

Promises plain JSON of known shapes: content as one string, arguments of earlier calls as objects.
"""

import re
from typing import Any

import orjson

from hydra.http.fields import key_name
from hydra.http.json_depth import JSON_DEPTH_MAX, json_depth
from hydra.protocol.refusal import RefusalError, refuse

ROLES = ("developer", "system", "user", "assistant", "tool")
TOOLS_MAX = 128
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
OF_MESSAGES = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"}
INERT = {"refusal", "annotations", "audio", "function_call"}  # what an answer of the API brings back


def history_of(messages: list[Any]) -> tuple[tuple[dict[str, Any], ...], set[str]]:
    """The messages, and the names of what was overlooked in them. Raises RefusalError."""
    overlooked: set[str] = set()
    return tuple(_message(message, f"messages[{at}]", overlooked) for at, message in enumerate(messages)), overlooked


def _message(message: Any, where: str, overlooked: set[str]) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _no(f"{where} needs a role, one of {', '.join(ROLES)}")
    if message.get("function_call") is not None:
        raise _no(f"{where}.function_call is not supported; use tool_calls")
    calls = _calls(message, where)
    made: dict[str, Any] = {"role": message["role"]}
    content = message.get("content")
    if content is not None or not calls:
        made["content"] = _content(content, where)
    for key in ("name", "tool_call_id"):
        if (value := message.get(key)) is not None:
            if not isinstance(value, str):
                raise _no(f"{where}.{key} must be a string")
            made[key] = value
    if calls:
        made["tool_calls"] = calls
    thought = message.get("reasoning_content", message.get("reasoning"))
    if thought is not None:
        if not isinstance(thought, str):
            raise _no(f"{where}.reasoning_content must be a string")
        made |= {"reasoning_content": thought, "thinking": thought}  # templates know it by either name
    overlooked |= {f"messages.{key_name(key)}" for key in message if key not in OF_MESSAGES | INERT}
    return made


def _no(message: str) -> RefusalError:
    return refuse("invalid_value", message, param="messages")


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise _no(f"{where}.content must be a string or a list of text parts")
    return content


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _no(f"{where}.content: only text parts are supported")
    text: str = part["text"]
    return text


def _calls(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """An assistant's earlier calls. Their arguments come as a string of JSON; templates want the object."""
    calls = message.get("tool_calls")
    if calls is None or calls == []:
        return []
    if message["role"] != "assistant" or not isinstance(calls, list) or len(calls) > TOOLS_MAX:
        raise _no(f"{where}.tool_calls must be at most {TOOLS_MAX} calls of the assistant")
    return [_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise _no(f"{where} must be of type function, with a function")
    if not isinstance(function.get("name"), str) or not FUNCTION_NAME.fullmatch(function["name"]):
        raise _no(f"{where}.function.name must be 1 to 128 letters, digits, _ . or -")
    if call.get("id") is not None and not isinstance(call["id"], str):
        raise _no(f"{where}.id must be a string")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments) if arguments.strip() else {}
        except orjson.JSONDecodeError as why:
            raise _no(f"{where}.function.arguments is not valid JSON: {why}") from why
    arguments = arguments or {}
    if not isinstance(arguments, dict) or json_depth(arguments) > JSON_DEPTH_MAX:
        raise _no(f"{where}.function.arguments must be a JSON object at most {JSON_DEPTH_MAX} deep")
    named = {"id": call["id"]} if call.get("id") is not None else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
