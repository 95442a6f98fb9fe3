"""The Hugging Face cache of this machine: snapshots that other tools fetched, which may serve in place of the Hub.

Promises: it is only read; nothing here writes, repairs or removes anything in it. A file counts as the Hub's only where
its name in the cache, which is the Hub's ETag, and its size say so. Refuses to know what is in a model.
"""

import hashlib
from pathlib import Path

import attrs

from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.refusal import RefusalError
from hydra.store.files.directory import blob_name, locate
from hydra.store.models.model_ref import HubRef, is_commit


@attrs.frozen
class HfCache:
    """`root` holds `models--org--name/snapshots/<commit>`; None: there is no such cache, and nothing is in it."""

    root: Path | None

    def snapshot(self, at: HubRef) -> Path | None:
        """The directory of a commit, or of the folder in it that is meant, whole or not; None when there is none."""
        if self.root is None or not at.is_commit:
            return None
        directory = self._repo(at) / "snapshots" / at.revision / at.folder
        return directory if _is_dir(directory) else None

    def recorded(self, ref: HubRef) -> tuple[str, float] | None:
        """The commit that a branch or tag was when a tool asked the Hub last, and when that was written down."""
        if self.root is None:
            return None
        record = self._repo(ref) / "refs" / ref.revision
        try:
            commit, written_s = record.read_text().strip(), record.stat().st_mtime
        except (OSError, ValueError):
            return None
        return (commit, written_s) if is_commit(commit) else None

    def _repo(self, ref: HubRef) -> Path:
        assert self.root is not None, "asked only where there is a cache"
        return self.root / f"models--{ref.repo.replace('/', '--')}"


def find_blob(directory: Path | None, stored: StoredFile) -> Path | None:
    """The file in a snapshot's `directory` whose content is that of `stored`, by its name in the cache and its size."""
    if directory is None:
        return None
    try:
        real = locate(directory, stored.file)
        same = real is not None and real.stat().st_size == stored.size_bytes
    except (RefusalError, OSError):
        return None
    return real if same and blob_name(directory, stored.file) == stored.tag else None


def read_small(directory: Path | None, stored: StoredFile) -> bytes | None:
    """The content of a small file of the snapshot in `directory`, if it is the very content that the Hub lists."""
    if directory is None:
        return None
    folder, _, name = stored.file.rpartition("/")
    try:
        real = locate(directory, name, folder or ".")
        if real is None or real.stat().st_size != stored.size_bytes:
            return None
        content = real.read_bytes()
    except (RefusalError, OSError):
        return None
    return content if has_tag(content, stored.tag) else None


def has_tag(content: bytes, tag: str) -> bool:
    """Whether the Hub would list this content with this tag: git's id of a small file, SHA-256 of a large one."""
    if len(tag) == hashlib.sha256().digest_size * 2:
        return hashlib.sha256(content).hexdigest() == tag
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == tag


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
