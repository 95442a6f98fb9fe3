"""The part of a chat request that the model's template will see: messages, tools, documents. Pure; every no names its
parameter.

Promises plain JSON of known shapes (chat_history has those of messages). Refuses to know any template, and what a
model's answer means: a call that a model writes is text.
"""

import re
from typing import Any

from hydra.http.chat_history import history_of
from hydra.http.fields import Fields
from hydra.protocol.refusal import refuse
from hydra.text.tokenizer import ChatInput

MESSAGES_MAX, TOOLS_MAX, DOCUMENTS_MAX, KWARGS_MAX = 2048, 128, 128, 64
EFFORT_MAX = 32
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "bos_token",
    "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
}  # fmt: skip  # what templates are given by the request itself and the model


def parse_chat(body: dict[str, Any]) -> tuple[ChatInput, set[str]]:
    """The input, and the names of what was overlooked. Raises RefusalError naming the parameter."""
    fields = Fields(body)
    messages = fields.list_of("messages", MESSAGES_MAX)
    if not messages:
        raise refuse("invalid_value", "messages must be a non-empty list", param="messages")
    history, overlooked = history_of(messages)
    tools, strict = _tools(fields)
    kwargs = _template_kwargs(fields)
    chat = ChatInput(
        messages=history,
        tools=tools,
        documents=_documents(fields),
        kwargs=kwargs,
        effort=_effort(fields, kwargs),
        template=_template(body),
        add_generation_prompt=fields.flag("add_generation_prompt", default=True),
        continue_final_message=fields.flag("continue_final_message"),
    )
    if chat.continue_final_message and chat.add_generation_prompt:
        message = "continue_final_message needs add_generation_prompt: false; an answer begins anew or goes on"
        raise refuse("invalid_value", message, param="continue_final_message")
    return chat, overlooked | ({"tools.function.strict"} if strict else set())


def _tools(fields: Fields) -> tuple[tuple[dict[str, Any], ...] | None, bool]:
    """None when there are none, or when the request says that none is to be used: then the model does not see them.

    And whether one is `strict`: no answer is held to a schema yet, and a tool is useful without.
    """
    choice = fields.body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        message = 'tool_choice can be "none" or "auto" in this version: nothing makes a model use a tool'
        raise refuse("unsupported", message, param="tool_choice")
    tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(fields.list_of("tools", TOOLS_MAX))]
    strict = [tool["function"].pop("strict", False) for tool in tools]  # a word to the server, not to the model
    if not tools or choice == "none":
        return None, False
    return tuple(tools), any(strict)


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """As it came, for the template to write: templates differ in what they look at. What is null was not sent."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        message = f"{where} is no function with a name; tools of another kind are not supported"
        raise refuse("unsupported", message, param="tools")
    if not isinstance(function.get("name"), str) or not FUNCTION_NAME.fullmatch(function["name"]):
        message = f"{where}.function.name must be 1 to 128 letters, digits, _ . or -"
        raise refuse("invalid_value", message, param="tools")
    kinds = (("description", str), ("parameters", dict), ("strict", bool))
    for key, kind in kinds:
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise refuse("invalid_value", f"{where}.function.{key} is of the wrong type", param="tools")
    return {**tool, "function": {key: value for key, value in function.items() if value is not None}}


def _documents(fields: Fields) -> tuple[dict[str, Any], ...] | None:
    documents = fields.list_of("documents", DOCUMENTS_MAX)
    if not all(isinstance(document, dict) for document in documents):
        raise refuse("invalid_value", "documents must be objects, for example with title and text", param="documents")
    return tuple(documents) or None


def _template_kwargs(fields: Fields) -> dict[str, Any]:
    kwargs = fields.object_of("chat_template_kwargs", KWARGS_MAX)
    if taken := RESERVED & set(kwargs):
        message = f"chat_template_kwargs cannot set {min(taken)}"
        raise refuse("invalid_value", message, param="chat_template_kwargs")
    return kwargs


def _effort(fields: Fields, kwargs: dict[str, Any]) -> str | None:
    """Which efforts there are is for the template to say."""
    effort = fields.body.get("reasoning_effort")
    if effort is None:
        return None
    if not isinstance(effort, str) or not 0 < len(effort) <= EFFORT_MAX:
        raise refuse("invalid_value", "reasoning_effort must be a word such as low or high", param="reasoning_effort")
    if kwargs.get("reasoning_effort") not in (None, effort):
        message = "reasoning_effort and chat_template_kwargs.reasoning_effort disagree; send one"
        raise refuse("invalid_value", message, param="reasoning_effort")
    return effort


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
