"""Which files a model's words are read from, and which files these are just now: told without reading them.

Promises that a file which is written, replaced or taken away makes another identity. It knows no content.
"""

from pathlib import Path

from hydra.store.files.file_identity import FileIdentity
from hydra.text.tokenizer_files import MAIN_TEMPLATE, MORE_TEMPLATES, TOKENIZER

NAMES = (
    TOKENIZER, "tokenizer_config.json", MAIN_TEMPLATE, "chat_template.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip

FilesIdentity = tuple[tuple[str, FileIdentity], ...]  # empty: there is no file at all


def identity_of(directory: Path, template_file: Path | None) -> FilesIdentity:
    """Of what `read_words` would read."""
    paths = [directory / name for name in NAMES]
    paths += sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    if template_file is not None:
        paths.append(template_file)
    found = ((str(path), _identity(path)) for path in paths)
    return tuple((path, identity) for path, identity in found if identity is not None)


def _identity(path: Path) -> FileIdentity | None:
    try:
        return FileIdentity.of(path.stat())
    except OSError:
        return None
