"""What was described, kept on this machine for a time in which it cannot be read: a directory gone, a Hub silent.

Promises: a description that comes back is the very one that was kept, by a checksum and by the strict rules of the
wire; one of another version, or damaged, is as if it were not there. At most ENTRIES_MAX are kept, the latest ones.
That one cannot be kept is said in the log and stops nobody. Refuses to know when it may stand in for the model.
"""

from hashlib import blake2b
from pathlib import Path

import attrs
import structlog

from hydra.protocol import codec
from hydra.protocol.messages import PROTOCOL_VERSION
from hydra.protocol.model_spec import Described
from hydra.store.whole_file import write_whole

FORMAT = 1
ENTRIES_MAX = 32
ENTRY_MAX_BYTES = 64 << 20  # the largest mixtures of experts have about 10 MB
SUFFIX = ".description"

log = structlog.get_logger()


@attrs.frozen
class DescriptionCache:
    """One file a place in `folder`; a place is what somebody called the model: a path, or a Hub id."""

    folder: Path

    def keep(self, place: str, described: Described) -> None:
        """From now on; what was kept for this place before is replaced."""
        try:
            body = codec.pack([place, codec.converter.unstructure(described)])
            if len(body) > ENTRY_MAX_BYTES:
                log.info("the model's description is too large to be kept", model=place, n_bytes=len(body))
                return
            write_whole(self._file(place), _header(body) + body)
            self._forget_oldest()
        except OSError as error:
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
        except Exception as why:  # noqa: BLE001 - msgpack and cattrs raise what they like; what it is changes nothing
            log.warning("a kept description makes no sense; it is passed over", file=str(path), why=f"{why!r:.200}")
            return None
        return described if kept_place == place else None

    def _file(self, place: str) -> Path:
        return self.folder / f"{_digest(place.encode(errors='surrogateescape'))}{SUFFIX}"

    def _forget_oldest(self) -> None:
        kept = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[ENTRIES_MAX:]:
            path.unlink(missing_ok=True)


def _header(body: bytes) -> bytes:
    """A line. A description of another protocol version may lack what this one needs."""
    return f"hydra description {FORMAT} {PROTOCOL_VERSION} {_digest(body)}\n".encode()


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
