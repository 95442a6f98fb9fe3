"""A model's words: text to ids and back, chats through a template. Nothing in the model's directory is executed.

Text inside chats that looks like a control token is encoded as text (control_tokens). A raw prompt may use control
tokens. Which tokens are put before and after a raw prompt is for the post-processor of tokenizer.json to say, as in
transformers; a chat has exactly those that its template writes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tokenizers import Tokenizer

from hydra.protocol.batch import Int32Column, token_ids
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.text.chat_template.marks import CUT, MARKS
from hydra.text.chat_template.template import ChatTemplate
from hydra.text.control_tokens import ControlTokens
from hydra.text.detokenizer import decode_ids
from hydra.text.least_tokens import LeastTokens
from hydra.text.tokenizer_files import encode_text, natively, read_tokenizer_files
from hydra.text.vocabulary import Vocabulary

MODELS_OWN = ("content", "reasoning_content", "reasoning", "thinking")  # of an assistant's message
# One wish by several names, which clients send side by side because templates know one of them.
KWARG_SPELLINGS = (frozenset({"enable_thinking", "thinking"}),)
NO_TEMPLATE = "this model has no chat template; use /v1/completions, or start with --chat-template FILE"


@attrs.frozen(kw_only=True)
class ChatInput:
    """What a chat template is given, as plain JSON. None: not given."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    effort: str | None = None  # `reasoning_effort`, which a template must use if it is given
    template: str | None = None  # by name
    add_generation_prompt: bool = True
    continue_final_message: bool = False


@attrs.define(eq=False)
class ModelTokenizer:
    """One model's words. May be used from any thread."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    control: ControlTokens
    templates: dict[str, ChatTemplate | Refusal]  # a refusal: why it cannot be used
    special: dict[str, str]
    least: LeastTokens

    @classmethod
    def load(cls, directory: Path, template_file: Path | None = None) -> "ModelTokenizer":
        """Raises RefusalError bad_model. A template that makes no sense is refused when it is asked for."""
        files = read_tokenizer_files(directory, template_file)
        templates = {name: _compiled(source) for name, source in files.templates.items()}
        literals = "\0".join(chosen.literals for chosen in templates.values() if isinstance(chosen, ChatTemplate))
        unknown = files.special.get("unk_token") or getattr(files.tokenizer.model, "unk_token", None) or ""
        control = ControlTokens.of(files.tokenizer, literals, unknown)
        vocabulary, least = Vocabulary.of(files.tokenizer), LeastTokens.of(files.tokenizer)
        return cls(files.tokenizer, vocabulary, control, templates, files.special, least)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Where an answer ends, as the tokenizer's files have it; the model's own configuration may name more."""
        end = self.tokenizer.token_to_id(self.special.get("eos_token", ""))
        return () if end is None else (end,)

    # ------------------------------------------------------------ words to ids

    def encode_prompt(self, text: str) -> Int32Column:
        """A raw completion prompt: control tokens in it are control tokens. A BOS that it has is not added again."""
        ids = encode_text(self.tokenizer, text, framed=True)
        bos = self.special.get("bos_token")
        if bos and text.startswith(bos) and len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.token_to_id(bos):
            ids = ids[1:]
        return token_ids(ids)

    def encode_chat(self, chat: ChatInput) -> Int32Column:
        """Raises RefusalError invalid_value when there is no template, or when it refuses (see ChatTemplate)."""
        return self.encode_rendered(self.render(chat))

    def encode_rendered(self, rendered: str) -> Int32Column:
        """What `render` has written."""
        return token_ids(natively(self.control.encode, rendered))

    def least_tokens(self, text: str) -> int:
        """No encoding of this text, a prompt or a rendered chat, has fewer; often it has many more."""
        return self.least.of_text(MARKS.sub("", text))

    def render(self, chat: ChatInput) -> str:
        """The chat as the template writes it, with the marks of `control` in it."""
        template = self.template_for(chat)
        mark = self.control.mark
        messages = [self._message(message, template) for message in chat.messages]
        if chat.continue_final_message:
            _open_end(messages)
        values = {
            **self.special,
            **{name: mark(value) for name, value in chat.kwargs.items()},
            **({} if chat.effort is None else {"reasoning_effort": mark(chat.effort)}),
            "tools": None if chat.tools is None else mark(chat.tools),
            "documents": None if chat.documents is None else mark(chat.documents),
            "add_generation_prompt": chat.add_generation_prompt,
        }
        rendered = template.render(messages, values)
        return _up_to_the_cut(rendered) if chat.continue_final_message else rendered

    def overlooked(self, chat: ChatInput) -> list[str]:
        """Names of what the request tells the template and the template never asks for: by this name or another."""
        names, kwargs = self.template_for(chat).names, chat.kwargs
        missed = [name for name, value in kwargs.items() if value is not None and name not in names]
        for spellings in KWARG_SPELLINGS:
            used = [kwargs[name] for name in spellings & names & kwargs.keys()]
            missed = [name for name in missed if name not in spellings or kwargs[name] not in used]
        return missed

    def template_for(self, chat: ChatInput) -> ChatTemplate:
        """By name; else the one for tools, when there are tools and it exists; else the default one."""
        if not self.templates:
            raise refuse("invalid_value", NO_TEMPLATE, param="messages")
        name = chat.template or ("tool_use" if chat.tools and "tool_use" in self.templates else "default")
        found = self.templates.get(name)
        if found is None:
            known = ", ".join(sorted(self.templates))
            message = f"this model has no chat template called {name!r} (it has: {known})"
            raise refuse("invalid_value", message, param="chat_template")
        if isinstance(found, Refusal):
            raise RefusalError(found)
        for param, given in (
            ("tools", chat.tools), ("documents", chat.documents), ("reasoning_effort", chat.effort),
        ):  # fmt: skip
            if given and param not in found.names:
                raise refuse("unsupported", f"this model's chat template does not use {param}", param=param)
        return found

    def _message(self, message: Mapping[str, Any], template: ChatTemplate) -> dict[str, Any]:
        role = message["role"]
        mark = self.control.mark
        if message.get("tool_calls"):
            message = template.call_form.turn(message)
        marked = {
            key: mark(value, models_own=role == "assistant" and key in MODELS_OWN)
            for key, value in message.items()
            if key != "role"
        }
        if role == "developer" and role not in template.literals:
            role = "system"  # what the newer name means, for a template that has only the older one
        return {"role": role, **marked}

    # ------------------------------------------------------------ ids to words

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return decode_ids(self.vocabulary, ids, skip_special=skip_special)


def _compiled(source: str | Refusal) -> ChatTemplate | Refusal:
    if isinstance(source, Refusal):
        return source
    try:
        return ChatTemplate.of(source)
    except RefusalError as error:
        return error.refusal


def _open_end(messages: list[dict[str, Any]]) -> None:
    """Marks the end of the last message. The blank shows later whether the template trims what is said."""
    if not messages or not isinstance(messages[-1].get("content"), str):
        message = "continue_final_message needs a last message with content"
        raise refuse("invalid_value", message, param="continue_final_message")
    messages[-1]["content"] += f"{CUT} "


def _up_to_the_cut(rendered: str) -> str:
    before, cut, after = rendered.rpartition(CUT)
    if not cut:
        message = "the chat template does not write the last message as it is, so it cannot be continued"
        raise refuse("invalid_value", message, param="continue_final_message")
    kept = before if after.startswith(" ") else before.rstrip()
    return kept.replace(f"{CUT} ", "").replace(CUT, "")
