"""Which files a model's words are read from, and which files these are just now: told without reading them.

Promises that a file which is written, replaced or taken away makes another identity. It knows no content.
"""

from pathlib import Path

from hydra.http.model_words import MAIN_TEMPLATE, MORE_TEMPLATES, TOKENIZER

NAMES = (
    TOKENIZER, "tokenizer_config.json", MAIN_TEMPLATE, "chat_template.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip

Identity = tuple[tuple[str, tuple[int, ...]], ...]  # empty: there is no file at all


def identity_of(directory: Path, template_file: Path | None) -> Identity:
    """Of what `read_words` would read."""
    paths = [directory / name for name in NAMES]
    paths += sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    if template_file is not None:
        paths.append(template_file)
    found = ((str(path), _stamp(path)) for path in paths)
    return tuple((path, stamp) for path, stamp in found if stamp)


def _stamp(path: Path) -> tuple[int, ...]:
    """The time of the last change is among it: a writer can set back the other one, and keep the size."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
