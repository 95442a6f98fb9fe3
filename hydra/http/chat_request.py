"""The part of a chat request that the model's template will see: messages, tools, documents. Pure; every no names its
parameter.

Promises plain JSON of known shapes: content as one string, arguments of earlier calls as objects. Refuses to know any
template, and what a model's answer means: a call that a model writes is text.
"""

import re
from typing import Any

import orjson

from hydra.http.tokenizer import ChatInput
from hydra.protocol.refusal import RefusalError, refuse

CHAT = {
    "messages", "tools", "tool_choice", "documents", "chat_template", "chat_template_kwargs", "add_generation_prompt",
    "continue_final_message",
}  # fmt: skip
JSON_DEPTH_MAX = 64
ROLES = ("developer", "system", "user", "assistant", "tool")
MESSAGES_MAX, TOOLS_MAX, DOCUMENTS_MAX, KWARGS_MAX = 2048, 128, 128, 64
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "bos_token",
    "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
}  # fmt: skip  # what templates are given by the request itself and the model
OF_MESSAGES = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"}
INERT = {
    "refusal",
    "annotations",
    "audio",
    "function_call",
}  # what an answer of the API brings back, and holds nothing here


def parse_chat(body: dict[str, Any]) -> tuple[ChatInput, set[str]]:
    """The input, and the names of what was overlooked. Raises RefusalError naming the parameter."""
    overlooked: set[str] = set()
    messages = _list(body, "messages", MESSAGES_MAX)
    if not messages:
        raise refuse("invalid_value", "messages must be a non-empty list", param="messages")
    chat = ChatInput(
        messages=tuple(_message(message, f"messages[{at}]", overlooked) for at, message in enumerate(messages)),
        tools=_tools(body),
        documents=_documents(body),
        kwargs=_template_kwargs(body),
        template=_template(body),
        add_generation_prompt=_flag(body, "add_generation_prompt", True),
        continue_final_message=_flag(body, "continue_final_message", False),
    )
    if chat.continue_final_message and chat.add_generation_prompt:
        message = "continue_final_message needs add_generation_prompt: false; an answer begins anew or goes on"
        raise refuse("invalid_value", message, param="continue_final_message")
    return chat, overlooked


def _list(body: dict[str, Any], name: str, most: int) -> list[Any]:
    """Empty when it is absent."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise refuse("invalid_value", f"{name} must be a list", param=name)
    if len(value) > most:
        raise refuse("invalid_value", f"at most {most} {name}", param=name)
    return value


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise refuse("invalid_value", f"{name} must be true or false", param=name)
    return default if value is None else value


# ---------------------------------------------------------------- messages


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
    overlooked |= {f"messages.{key}" for key in message if key not in OF_MESSAGES | INERT and key.isidentifier()}
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


# ---------------------------------------------------------------- what stands beside the messages


def _tools(body: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """None when there are none, or when the request says that none is to be used: then the model does not see them."""
    tools = _list(body, "tools", TOOLS_MAX)
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            message = f"tools[{at}] is no function with a name; tools of another kind are not supported"
            raise refuse("unsupported", message, param="tools")
        if not isinstance(function.get("name"), str) or not FUNCTION_NAME.fullmatch(function["name"]):
            message = f"tools[{at}].function.name must be 1 to 128 letters, digits, _ . or -"
            raise refuse("invalid_value", message, param="tools")
        kinds = (("description", str), ("parameters", dict), ("strict", bool))
        for key, kind in kinds:
            if function.get(key) is not None and not isinstance(function[key], kind):
                raise refuse("invalid_value", f"tools[{at}].function.{key} is of the wrong type", param="tools")
        if function.get("strict"):
            message = f"tools[{at}].function.strict is not supported by this version: answers are not held to a schema"
            raise refuse("unsupported", message, param="tools")
    return tuple(tools) if tools and body.get("tool_choice") != "none" else None


def _documents(body: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    documents = _list(body, "documents", DOCUMENTS_MAX)
    if not all(isinstance(document, dict) for document in documents):
        raise refuse("invalid_value", "documents must be objects, for example with title and text", param="documents")
    return tuple(documents) or None


def _template_kwargs(body: dict[str, Any]) -> dict[str, Any]:
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict) or len(kwargs) > KWARGS_MAX:
        message = f"chat_template_kwargs must be an object of at most {KWARGS_MAX} values"
        raise refuse("invalid_value", message, param="chat_template_kwargs")
    if taken := RESERVED & set(kwargs):
        message = f"chat_template_kwargs cannot set {min(taken)}"
        raise refuse("invalid_value", message, param="chat_template_kwargs")
    return kwargs


def _template(body: dict[str, Any]) -> str | None:
    """The name of one of the model's own templates; never a template."""
    name = body.get("chat_template")
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > 128:
        raise refuse("invalid_value", "chat_template names a template of the model", param="chat_template")
    if any(sign in name for sign in "{}%\n"):
        message = "a chat template in a request is not supported; chat_template names one of the model's own"
        raise refuse("unsupported", message, param="chat_template")
    return name


def json_depth(value: Any) -> int:
    """Levels of a JSON value, counted to one beyond JSON_DEPTH_MAX."""
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > JSON_DEPTH_MAX:
            break
        children = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level = [child for group in children for child in group]
    return deepest
