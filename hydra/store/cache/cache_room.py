"""The room that all entries of the range cache share: one folder an entry, a lock on each, and a limit on the whole.

Promises: an entry that somebody uses is never removed; when room is short, the least recently used others go, and if
that is not enough the answer is a refusal with the numbers. Processes of one machine share it. Refuses to know what
the files in an entry mean.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs

from hydra.protocol.refusal import RefusalError, refuse
from hydra.protocol.units import GIGABYTE

LOCK = ".lock"  # held shared by whoever uses the entry; its modification time is the last use
_FULL = (errno.ENOSPC, errno.EDQUOT)


@attrs.frozen
class Hold:
    """One entry in use; until it is released nobody removes it."""

    folder: Path
    _lock: int

    def release(self) -> None:
        os.close(self._lock)


@attrs.frozen(kw_only=True)
class CacheRoom:
    """Entries below `root`, together at most `max_bytes` on the disk (None: as much as there is)."""

    root: Path
    max_bytes: int | None = None

    def hold(self, name: str) -> Hold:
        """The entry of this name, made if need be, and marked as used now. Raises OSError."""
        folder = self.root / name
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, folder / LOCK):
                os.utime(lock)
                return Hold(folder, lock)
            os.close(lock)  # it was being removed when we came

    def make_room(self, needed_bytes: int) -> None:
        """Removes unused entries until `needed_bytes` more fit. Raises RefusalError does_not_fit."""
        if self.max_bytes is not None:
            over = sum(_disk_bytes(folder) for folder in self._entries()) + needed_bytes - self.max_bytes
            if (over := self._free(over)) > 0:
                raise refuse(
                    "does_not_fit",
                    f"The model cache {self.root} may take {self.max_bytes / GIGABYTE:g} GB; what is in use there and "
                    f"the {needed_bytes / GIGABYTE:.3f} GB still to come are {over / GIGABYTE:.3f} GB too much. "
                    "Raise [model] max_cache_gb, or set cache_dir to a larger disk.",
                )
        free_bytes = shutil.disk_usage(self.root).free
        if (short := self._free(needed_bytes - free_bytes)) > 0:
            raise refuse(
                "does_not_fit",
                f"{self.root} has {free_bytes / GIGABYTE:.3f} GB free, and {needed_bytes / GIGABYTE:.3f} GB are to "
                f"come: {short / GIGABYTE:.3f} GB too much. Free some, or set [model] cache_dir to a larger disk.",
            )

    def _free(self, bytes_over: int) -> int:
        """Removes the least recently used entries that nobody holds; returns what is still too much."""
        for folder in sorted(self._entries(), key=_last_use) if bytes_over > 0 else ():
            if bytes_over <= 0:
                break
            size = _disk_bytes(folder)
            if _remove(folder):
                bytes_over -= size
        return bytes_over

    def _entries(self) -> Iterator[Path]:
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            yield from [Path(item.path) for item in entries if item.is_dir(follow_symlinks=False)]


def is_of_the_disk(error: OSError) -> bool:
    """Whether it is the place that is written to which fails, and not what is read or fetched."""
    return error.errno in (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)


def unusable(place: Path, error: OSError) -> RefusalError:
    """The refusal for a cache that the operating system does not let us use."""
    if error.errno in _FULL:
        return refuse(
            "does_not_fit",
            f"The disk that the model cache {place} lies on is full: {error}. What has come so far is kept. Free some "
            "space, or set [model] cache_dir to a larger disk.",
        )
    return refuse(
        "source_unreachable",
        f"The model cache {place} cannot be used: {error}. Mend it, or set [model] cache_dir to another place.",
    )


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _last_use(folder: Path) -> float:
    try:
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return 0.0  # half made or half removed


def _disk_bytes(folder: Path) -> int:
    """What the entry takes on the disk; holes of sparse files take nothing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for item in entries:
                total += item.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0  # another process is removing it
    return total


def _remove(folder: Path) -> bool:
    """Removes an entry unless somebody holds it. It gets another name first: whoever wants it then makes it anew."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        return True  # another process was faster
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(lock, folder / LOCK):
            return False  # removed and made anew meanwhile
        gone = folder.with_name(f".gone-{secrets.token_hex(8)}")
        folder.rename(gone)
    except OSError:
        return False
    finally:
        os.close(lock)
    shutil.rmtree(gone, ignore_errors=True)  # what an interrupted removal leaves has a use long past: it goes first
    return not gone.exists()
