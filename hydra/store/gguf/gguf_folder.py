"""The small files of a model folder, made from a GGUF file once and kept in the cache.

Promises: the folder is there whole or not at all, and another header makes another one; at most FOLDERS_MAX are kept,
those used last. Refuses to know who reads them.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import orjson

from hydra.store.cache.cache_room import unusable
from hydra.store.gguf.gguf_config import architecture_of, config_of, generation_of
from hydra.store.gguf.gguf_content import GgufContent
from hydra.store.gguf.gguf_rope import ROPE_TENSORS
from hydra.store.gguf.gguf_tokenizer import tokenizer_of

FORMAT = 3  # another whenever the same header makes other files
FOLDERS_MAX = 32
FOLDERS = "gguf"


def model_folder(content: GgufContent, cache_dir: Path) -> Path:
    """The folder that this file stands for, made if it is not there yet. Raises RefusalError: bad_model, unsupported,
    and what `unusable` says of a cache that cannot be written."""
    root = cache_dir / FOLDERS
    target = root / _digest(content)
    try:
        if target.is_dir():
            os.utime(target)
            return target
        documents = _documents(content)
        root.mkdir(parents=True, exist_ok=True)
        _write(root, target, documents)
        _forget(root)
    except OSError as error:
        raise unusable(root, error) from error
    return target


def _documents(content: GgufContent) -> dict[str, Any]:
    config = config_of(content)
    tokens = tokenizer_of(content.metadata, architecture_of(content.metadata))
    return {
        "config.json": config,
        "generation_config.json": generation_of(content.metadata, tokens.tokens, tokens.types),
        "tokenizer.json": tokens.tokenizer,
        "tokenizer_config.json": {**tokens.config, "model_max_length": config["max_position_embeddings"]},
    }


def _digest(content: GgufContent) -> str:
    """Of all headers, and of the numbers that become part of the config."""
    digest = hashlib.sha256(f"hydra gguf folder {FORMAT}\n".encode())
    for header in content.headers.values():
        digest.update(len(header.raw).to_bytes(8, "little") + header.raw)
    for name in sorted(ROPE_TENSORS & content.tensors.keys()):
        digest.update(repr(content.vector(name)).encode())
    return digest.hexdigest()[:40]


def _write(root: Path, target: Path, documents: dict[str, Any]) -> None:
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        making.chmod(0o755)
        for name, document in documents.items():
            # indented, as published files are: what their readers allow of time and memory goes by the bytes
            (making / name).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        try:
            making.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and made the same
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _forget(root: Path) -> None:
    """The folders that were used longest ago."""
    kept = sorted((path for path in root.iterdir() if path.is_dir()), key=_used_s, reverse=True)
    for path in kept[FOLDERS_MAX:]:
        shutil.rmtree(path, ignore_errors=True)


def _used_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another process has removed it
