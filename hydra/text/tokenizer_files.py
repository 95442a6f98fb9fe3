"""The word files of a model directory: which tokenizer, which special tokens, which chat templates. Read, never run.

Promises what transformers finds in the same directory. Sizes are checked before anything is parsed; what makes no
sense is refused with the file's name. It knows no template's meaning and encodes nothing.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
from tokenizers import Tokenizer

from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.store.files.directory import locate, parse_object
from hydra.store.files.foreign_file import refuse_foreign
from hydra.text.chat_template.template import SOURCE_MAX
from hydra.text.side_tokens import side_tokens

TOKENIZER_BYTES_MAX = 64 << 20
CONFIG_BYTES_MAX = 16 << 20  # some list thousands of added tokens
TEMPLATES_MAX = 16
TOKENIZER, MAIN_TEMPLATE, MORE_TEMPLATES = "tokenizer.json", "chat_template.jinja", "additional_chat_templates"

# Threads are for whoever has many texts to share out; the library's own would take every core for one.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

T = TypeVar("T")


@attrs.frozen(eq=False)
class TokenizerFiles:
    """What a directory says. `templates` by name, or why one cannot be read; the one used by itself is "default"."""

    tokenizer: Tokenizer
    special: dict[str, str]  # "bos_token" -> "<s>", as templates see them
    templates: dict[str, str | Refusal]


def read_tokenizer_files(directory: Path, template_file: Path | None = None) -> TokenizerFiles:
    """`template_file` stands for all templates of the directory. Raises RefusalError bad_model."""
    tokenizer = read_tokenizer(directory)
    config = _json_object(directory, "tokenizer_config.json")
    beside = side_tokens(config, partial(_json_object, directory))
    natively(beside.add_to, tokenizer)
    if template_file is not None:
        templates = {"default": _source(lambda: template_file, template_file.name)}
    else:
        templates = _templates(directory, config)
    return TokenizerFiles(tokenizer, beside.names, templates)


def read_tokenizer(directory: Path) -> Tokenizer:
    """tokenizer.json, without truncation and padding."""
    text = _read(locate(directory, TOKENIZER), TOKENIZER, TOKENIZER_BYTES_MAX)
    tokenizer = natively(Tokenizer.from_str, text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def natively(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Runs the tokenizer's native code. Raises RefusalError bad_model for its errors, and its panics.

    The first are plain Exceptions and no subclass; the second are no Exceptions at all.
    """
    try:
        return work(*args, **kwargs)
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise refuse("bad_model", f"tokenizer.json makes no sense: {str(error)[:300]}") from error


def encode_text(tokenizer: Tokenizer, text: str, *, framed: bool = False) -> list[int]:
    """`framed`: with the tokens that the post-processor puts around a text. Other threads go on meanwhile.

    `Tokenizer.encode` keeps the interpreter to itself from end to end, which is seconds for a large text.
    """
    (encoding,) = natively(tokenizer.encode_batch_fast, [text], add_special_tokens=framed)
    ids: list[int] = encoding.ids
    return ids


def encode_with_places(tokenizer: Tokenizer, text: str) -> Any:
    """The same, unframed: an Encoding with the place of each token in the text, which takes twice as long."""
    (encoding,) = natively(tokenizer.encode_batch, [text], add_special_tokens=False)
    return encoding


def _read(path: Path | None, name: str, bytes_max: int) -> str:
    try:
        if path is None or not path.is_file():
            raise refuse("bad_model", f"{name} cannot be read: there is no such file")
        if path.stat().st_size > bytes_max:
            raise refuse("bad_model", f"{name} is larger than {bytes_max} bytes")
        raw = path.read_bytes()
        refuse_foreign(raw, name)
        return raw.decode("utf-8")
    except OSError as error:
        raise refuse("bad_model", f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refuse("bad_model", f"{name} is not UTF-8") from error


def _json_object(directory: Path, name: str) -> dict[str, Any]:
    """Empty when there is no such file."""
    path = locate(directory, name)
    if path is None:
        return {}
    return parse_object(_read(path, name, CONFIG_BYTES_MAX).encode(), name)


def _source(find: Callable[[], Path | None], name: str) -> str | Refusal:
    """A template that cannot be read costs the chats that ask for it, and not the model."""
    try:
        return _read(find(), name, 4 * SOURCE_MAX)
    except RefusalError as error:
        return attrs.evolve(error.refusal, code="invalid_value", param="messages")


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str | Refusal]:
    """Files go before entries of the configuration; chat_template.json is where processors kept theirs."""
    found: dict[str, str | Refusal] = {}
    if (directory / MAIN_TEMPLATE).exists():
        found["default"] = _source(partial(locate, directory, MAIN_TEMPLATE), MAIN_TEMPLATE)
    for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))[:TEMPLATES_MAX]:
        found[path.stem] = _source(partial(locate, directory, path.name, MORE_TEMPLATES), path.name)
    if found:
        return found
    entry = config.get("chat_template")
    if entry is None:
        entry = _json_object(directory, "chat_template.json").get("chat_template")
    if isinstance(entry, str):
        return {"default": entry}
    named = entry if isinstance(entry, list) else []
    if len(named) > TEMPLATES_MAX:
        raise refuse("bad_model", f"tokenizer_config.json: more than {TEMPLATES_MAX} chat templates")
    pairs = [(item.get("name"), item.get("template")) for item in named if isinstance(item, dict)]
    return {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}
