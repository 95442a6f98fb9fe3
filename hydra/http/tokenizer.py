"""A model directory's tokenizer and chat template: words to ids and back. Nothing in the directory is executed.

Text inside chat messages that looks like a control token is encoded as text: contents travel through the template as
placeholders from a private-use plane, and only the template's own text may contain control tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from hydra.protocol.refusal import refuse

TOKENIZER_BYTES_MAX = 64 << 20
TEMPLATE_BYTES_MAX = 1 << 20
RENDERED_CHARS_MAX = 8 << 20
MARK = "\U000f0000{}\U000f0001"  # private use: no text that means anything contains it


@attrs.define(eq=False)
class Words:
    """One model's words. Raises RefusalError bad_model from `load`."""

    tokenizer: Tokenizer
    literal: Tokenizer  # the same, with control tokens read as plain text
    template: str | None
    bos: str
    eos: str
    adds_bos: bool

    @classmethod
    def load(cls, directory: Path) -> "Words":
        text = _read(directory / "tokenizer.json", TOKENIZER_BYTES_MAX)
        try:
            tokenizer, literal = Tokenizer.from_str(text), Tokenizer.from_str(text)
        except Exception as why:
            raise refuse("bad_model", f"tokenizer.json makes no sense: {why}") from why
        for each in (tokenizer, literal):
            each.no_truncation()
            each.no_padding()
        literal.encode_special_tokens = True
        config: dict[str, Any] = {}
        if (directory / "tokenizer_config.json").exists():
            config = json.loads(_read(directory / "tokenizer_config.json", TEMPLATE_BYTES_MAX))
        return cls(
            tokenizer,
            literal,
            _template_text(directory, config),
            _token_text(config.get("bos_token")),
            _token_text(config.get("eos_token")),
            bool(tokenizer.encode("x").ids != tokenizer.encode("x", add_special_tokens=False).ids),
        )

    def encode_prompt(self, text: str) -> list[int]:
        """A raw completion prompt: control tokens in it are control tokens."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[dict[str, Any]], kwargs: dict[str, Any]) -> list[int]:
        """Raises RefusalError invalid_value when the template refuses, is missing, or grows without end."""
        contents: list[str] = []
        marked: list[dict[str, Any]] = []
        for message in messages:
            contents.append(_without_marks(message["content"]))
            marked.append({**message, "content": MARK.format(len(contents) - 1)})
        rendered = self._render(marked, kwargs)
        ids: list[int] = []
        for piece in rendered.split("\U000f0000"):
            number, mark, rest = piece.partition("\U000f0001")
            if mark and number.isdecimal() and int(number) < len(contents):
                ids += self.literal.encode(contents[int(number)], add_special_tokens=False).ids
            else:
                rest = piece
            ids += self.tokenizer.encode(rest, add_special_tokens=False).ids if rest else []
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text

    def _render(self, messages: list[dict[str, Any]], kwargs: dict[str, Any]) -> str:
        if self.template is None:
            message = "this model has no chat template; use /v1/completions"
            raise refuse("invalid_value", message, param="messages")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        try:
            template = environment.from_string(self.template)
            pieces: list[str] = []
            size = 0
            values = {**kwargs, "bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": True}
            for piece in template.generate(messages=messages, **values):
                size += len(piece)
                if size > RENDERED_CHARS_MAX:
                    raise refuse("invalid_value", "the chat template grows without end", param="messages")
                pieces.append(piece)
        except (TemplateError, SecurityError, TypeError, ValueError, OverflowError, RecursionError) as why:
            raise refuse("invalid_value", f"the chat template refuses this: {why}", param="messages") from why
        return "".join(pieces)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _without_marks(text: str) -> str:
    return text.replace("\U000f0000", "").replace("\U000f0001", "")


def _read(path: Path, bytes_max: int) -> str:
    try:
        if path.stat().st_size > bytes_max:
            raise refuse("bad_model", f"{path.name} is larger than {bytes_max} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as why:
        raise refuse("bad_model", f"{path.name} cannot be read: {why.strerror}") from why


def _template_text(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return _read(file, TEMPLATE_BYTES_MAX)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
