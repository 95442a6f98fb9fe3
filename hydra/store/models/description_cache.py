"""What was described, kept on this machine for a time in which it cannot be read: a directory gone, a Hub silent.

Promises: a description that comes back is the very one that was kept, by a checksum and by the strict rules of the
wire, and so are the small files of a directory (config, tokenizer, templates), which lie in its `folder` then; one of
another version, or damaged, is as if it were not there. At most DESCRIPTIONS_MAX are kept, the latest ones. That one
cannot be kept is said in the log and stops nobody. Refuses to know when it may stand in for the model.
"""

import shutil
from hashlib import blake2b
from pathlib import Path

import attrs
import structlog

from hydra.protocol import codec
from hydra.protocol.messages.membership import PROTOCOL_VERSION
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import RefusalError
from hydra.store.files.directory import locate
from hydra.store.files.small_files import SMALL_FILES, SMALL_MAX_BYTES, TEMPLATES
from hydra.store.files.whole_file import write_whole

FORMAT = 4
DESCRIPTIONS_MAX = 32
ENTRY_MAX_BYTES = 64 << 20  # the largest mixtures of experts have about 10 MB
SUFFIX, FILES_SUFFIX = ".description", ".files"

log = structlog.get_logger()


@attrs.frozen
class DescriptionCache:
    """One file a place in `folder`; a place is what somebody called the model: a path, or a Hub id."""

    folder: Path

    def keep(self, place: str, described: Described) -> None:
        """From now on; what was kept for this place before is replaced."""
        try:
            if described.hub_commit is None:  # of a Hub model they lie in the cache already
                described = attrs.evolve(described, folder=str(self._keep_files(place, Path(described.folder))))
            body = codec.pack([place, codec.converter.unstructure(described)])
            if len(body) > ENTRY_MAX_BYTES:
                log.info("the model's description is too large to be kept", model=place, n_bytes=len(body))
                return
            write_whole(self._file(place), _header(body) + body)
            self._forget(place, Path(described.folder))
        except (OSError, RefusalError) as error:
            log.warning("the model's description cannot be kept", model=place, folder=str(self.folder), why=str(error))

    def recall(self, place: str) -> Described | None:
        """None when there is none, or none that can be believed."""
        path = self._file(place)
        try:
            with path.open("rb") as stream:
                raw = stream.read(ENTRY_MAX_BYTES + 1000)
        except OSError:
            return None
        end = raw.find(b"\n") + 1
        header, body = raw[:end], raw[end:]
        if header != _header(body):
            log.warning("a kept description is damaged or of another version; it is passed over", file=str(path))
            return None
        try:
            kept_place, fields = codec.unpack(body)
            described: Described = codec.converter.structure(fields, Described)
        except Exception as error:  # noqa: BLE001 - msgpack and cattrs raise what they like; what it is changes nothing
            log.warning("a kept description makes no sense; it is passed over", file=str(path), why=f"{error!r:.200}")
            return None
        if kept_place != place or not self._has_files(described):
            log.warning("a kept description is not of this model, or not whole; it is passed over", file=str(path))
            return None
        return described

    def _file(self, place: str) -> Path:
        return self.folder / f"{_name(place)}{SUFFIX}"

    def _keep_files(self, place: str, directory: Path) -> Path:
        """A copy of the small files, in a folder that is named by their content."""
        files = _small_files(directory)
        folder = self.folder / f"{_name(place)}-{_digest_of_files(files)}{FILES_SUFFIX}"
        if _digest_of_files(_small_files(folder)) != _digest_of_files(files):
            for name, content in files.items():
                write_whole(folder / name, content)
        return folder

    def _has_files(self, described: Described) -> bool:
        """Whether the small files that were copied are the ones that were copied."""
        folder = Path(described.folder)
        if folder.parent != self.folder:
            return described.hub_commit is not None
        try:
            return folder.name.endswith(f"-{_digest_of_files(_small_files(folder))}{FILES_SUFFIX}")
        except (OSError, RefusalError):
            return False

    def _forget(self, place: str, current: Path) -> None:
        """The oldest descriptions, and small files that no description names any more."""
        kept = sorted(self.folder.glob(f"*{SUFFIX}"), key=_written_s, reverse=True)
        for path in kept[DESCRIPTIONS_MAX:]:
            path.unlink(missing_ok=True)
        names = {path.name.removesuffix(SUFFIX) for path in kept[:DESCRIPTIONS_MAX]}
        for folder in self.folder.glob(f"*{FILES_SUFFIX}"):
            name = folder.name.partition("-")[0]
            if name not in names or (name == _name(place) and folder != current):
                shutil.rmtree(folder, ignore_errors=True)


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another process has removed it


def _small_files(directory: Path) -> dict[str, bytes]:
    """By their names below the directory. Raises OSError, and RefusalError where one leads out of it."""
    parts: dict[str, bytes] = {}
    templates = [path.name for path in (directory / TEMPLATES).glob("*.jinja")]
    for folder, name in [*((".", name) for name in sorted(SMALL_FILES)), *((TEMPLATES, name) for name in templates)]:
        real = locate(directory, name, folder.rstrip("/"))
        if real is not None and real.stat().st_size <= SMALL_MAX_BYTES:
            parts[name if folder == "." else f"{folder}{name}"] = real.read_bytes()
    return parts


def _digest_of_files(files: dict[str, bytes]) -> str:
    return _digest(b"".join(f"{name}\0{_digest(files[name])}\0".encode() for name in sorted(files)))


def _name(place: str) -> str:
    return _digest(place.encode(errors="surrogateescape"))


def _header(body: bytes) -> bytes:
    """A line. A description of another protocol version may lack what this one needs."""
    return f"hydra description {FORMAT} {PROTOCOL_VERSION} {_digest(body)}\n".encode()


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
