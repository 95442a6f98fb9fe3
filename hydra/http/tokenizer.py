"""A model directory's tokenizer and chat template: words to ids and back. Nothing in the directory is executed.

Text inside chat messages that looks like a control token is encoded as text: it travels through the template between
two private-use marks, and what stands between them is read without control tokens. Everything else is tokenized in one
piece, as the model was trained on it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from tokenizers import Tokenizer

from hydra.http.template import ChatTemplate
from hydra.protocol.refusal import refuse

TOKENIZER_BYTES_MAX = 64 << 20
TEMPLATE_BYTES_MAX = 1 << 20
OPENS, CLOSES = "\U000f0000", "\U000f0001"  # private use: no text that means anything contains them
MARKED = re.compile(f"({OPENS}[^{CLOSES}]*{CLOSES})")


@attrs.define(eq=False)
class Words:
    """One model's words. Raises RefusalError bad_model from `load`."""

    tokenizer: Tokenizer
    literal: Tokenizer  # the same, with control tokens read as plain text
    control: "re.Pattern[str] | None"  # finds what looks like a control token
    template: ChatTemplate | None
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
            config = _json_object(directory / "tokenizer_config.json")
        return cls(
            tokenizer,
            literal,
            _control_pattern(tokenizer),
            _template(directory, config),
            _token_text(config.get("bos_token")),
            _token_text(config.get("eos_token")),
            bool(tokenizer.encode("x").ids != tokenizer.encode("x", add_special_tokens=False).ids),
        )

    def encode_prompt(self, text: str) -> list[int]:
        """A raw completion prompt: control tokens in it are control tokens."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[dict[str, Any]], kwargs: dict[str, Any]) -> list[int]:
        """Raises RefusalError invalid_value when there is no template, or when it refuses (see ChatTemplate)."""
        if self.template is None:
            message = "this model has no chat template; use /v1/completions"
            raise refuse("invalid_value", message, param="messages")
        marked = [{**message, "content": self._mark(message["content"])} for message in messages]
        values = {**kwargs, "bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": True}
        ids: list[int] = []
        for piece in MARKED.split(self.template.render(marked, values)):
            tokenizer = self.literal if piece.startswith(OPENS) else self.tokenizer
            ids += tokenizer.encode(piece.strip(OPENS + CLOSES), add_special_tokens=False).ids
        return ids

    def _mark(self, text: str) -> str:
        """Control tokens in what somebody wrote, fenced in. Text without them is left as it is."""
        plain = text.replace(OPENS, "").replace(CLOSES, "")
        return self.control.sub(lambda found: f"{OPENS}{found.group()}{CLOSES}", plain) if self.control else plain

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text


def _control_pattern(tokenizer: Tokenizer) -> "re.Pattern[str] | None":
    tokens = [added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special]
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _read(path: Path, bytes_max: int) -> str:
    try:
        if path.stat().st_size > bytes_max:
            raise refuse("bad_model", f"{path.name} is larger than {bytes_max} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as why:
        raise refuse("bad_model", f"{path.name} cannot be read: {why.strerror}") from why
    except UnicodeDecodeError as why:
        raise refuse("bad_model", f"{path.name} is not UTF-8") from why


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path, TEMPLATE_BYTES_MAX))
    except (ValueError, RecursionError) as why:
        raise refuse("bad_model", f"{path.name} is not valid JSON: {why}") from why
    if not isinstance(content, dict):
        raise refuse("bad_model", f"{path.name} must hold a JSON object")
    return content


def _template(directory: Path, config: dict[str, Any]) -> ChatTemplate | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return ChatTemplate(_read(file, TEMPLATE_BYTES_MAX))
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return ChatTemplate(template) if isinstance(template, str) else None


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
