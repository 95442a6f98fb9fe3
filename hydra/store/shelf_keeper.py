"""What this process lends to other machines: chunks of described models' files, by fingerprint and file name.

Promises: only bytes of a file that was lent, as it was when it was lent, and all of those that were asked for; anything
else is a typed refusal. A name from outside is looked up among the names that were lent and never becomes a path.
Any thread may ask. Refuses to know who asks, and how the bytes travel.

A whole model directory is lent by whoever described it (the coordinator), slices by the worker that has loaded them: in
a cache the files have holes, and the worker knows only the ranges that it has loaded to be there.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import attrs

from hydra.protocol.messages import LoadSlice
from hydra.protocol.model_spec import Described
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.directory import locate
from hydra.store.spans import Spans

MODELS_MAX = 64  # lent at a time; beyond, the one lent first is taken back
SMALL_FILES = (  # what a frontend needs beside the weights
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)


@attrs.frozen
class Lent:
    """A chunk, and the size of the file it is from."""

    data: bytearray
    file_bytes: int


class Place(Protocol):
    """Where one model's files lie."""

    def read(self, file: str, offset: int, length: int) -> Lent:
        """Raises RefusalError: model_not_found, invalid_value, bad_model."""

    def close(self) -> None: ...


@attrs.define(eq=False)
class ShelfKeeper:
    """The places by fingerprint."""

    _places: dict[str, Place] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def lend(self, fingerprint: str, place: Place) -> None:
        """From now on; another place of the same model is taken back."""
        with self._lock:
            taken_back = [self._places.pop(fingerprint, None)]
            if len(self._places) >= MODELS_MAX:
                taken_back.append(self._places.pop(next(iter(self._places))))
            self._places[fingerprint] = place
        for former in taken_back:
            if former is not None:
                former.close()

    def lend_described(self, described: Described) -> None:
        """All files of a model whose weights lie in a directory of this machine, the small ones perhaps in another."""
        small = WholeFiles.of(Path(described.folder), SMALL_FILES)
        weights = WholeFiles.of(Path(described.sources[0]), {tensor.file for tensor in described.tensors})
        self.lend(described.spec.fingerprint, small.and_those_of(weights))

    def lend_slice(self, order: LoadSlice) -> None:
        """The ranges of an order that was loaded from a folder of this machine, and no other model beside it.

        Ranges of the same model that were lent before stay lent, while they lie in the same files: a plan that moves
        layers away has them fetched here. Of other models the cache keeps nothing from being removed. Raises OSError.
        """
        with self._lock:
            former = self._places.get(order.spec.fingerprint)
        place = HeldOpen.of(Path(order.sources[0]), order, former if isinstance(former, HeldOpen) else None)
        with self._lock:
            taken_back = list(self._places.values())
            self._places = {order.spec.fingerprint: place}
        for each in taken_back:
            each.close()

    def read(self, fingerprint: str, file: str, offset: int, length: int) -> Lent:
        """The bytes [offset, offset + length) of `file`. The caller has bounded `length`.

        Raises RefusalError: model_not_found (not lent here), invalid_value (outside the file, or the file is none of
        the model's), bad_model (changed on the disk since, or cannot be read).
        """
        with self._lock:
            place = self._places.get(fingerprint)
        if place is None:
            raise refuse("model_not_found", f"no model of fingerprint {fingerprint[:16]!r} is held here")
        return place.read(file, offset, length)

    def close(self) -> None:
        """Nothing is lent any more."""
        with self._lock:
            former, self._places = self._places, {}
        for place in former.values():
            place.close()


@attrs.frozen
class _Identity:
    """What tells one state of a file from another without reading it."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "_Identity":
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@attrs.frozen
class WholeFiles:
    """Files of a model directory, opened for each chunk: a model may have hundreds."""

    _files: Mapping[str, tuple[Path, _Identity]]

    @classmethod
    def of(cls, directory: Path, names: Iterable[str]) -> "WholeFiles":
        """Those of `names` that are there. Raises RefusalError bad_model where one leads out of the directory."""
        found = {name: real for name in names if (real := locate(directory, name)) is not None}
        return cls({name: (real, _Identity.of(real.stat())) for name, real in found.items()})

    def and_those_of(self, other: "WholeFiles") -> "WholeFiles":
        return WholeFiles({**self._files, **other._files})

    def read(self, file: str, offset: int, length: int) -> Lent:
        if file not in self._files:
            raise _no_such_file(file)
        real, identity = self._files[file]
        try:
            opened = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _unreadable(file, error) from error
        try:
            if _Identity.of(os.fstat(opened)) != identity:
                raise refuse("bad_model", f"{file} was changed since the model was described")
            return read_chunk(opened, file, identity.size_bytes, offset, length)
        finally:
            os.close(opened)

    def close(self) -> None:
        """Nothing is open between two chunks."""


@attrs.define(eq=False)
class _OpenFile:
    """One file of a slice. It stays the same file though its entry be removed and made anew."""

    opened: int | None
    size_bytes: int
    spans: Spans = attrs.field(factory=Spans)
    lock: threading.Lock = attrs.field(factory=threading.Lock)


@attrs.frozen
class HeldOpen:
    """The files of one worker's slices, held open, with the ranges that are known to be in them."""

    _files: dict[str, _OpenFile] = attrs.field(factory=dict)

    @classmethod
    def of(cls, folder: Path, order: LoadSlice, former: "HeldOpen | None" = None) -> "HeldOpen":
        """Also what `former` lent of those files that are still the same. Raises OSError."""
        made = cls()
        try:
            for tensor in order.tensors:
                if tensor.file not in made._files and not made._open(folder, tensor.file):
                    raise FileNotFoundError(folder / tensor.file)
                made._files[tensor.file].spans.add(tensor.offset, tensor.offset + tensor.length)
            for file, held in former._files.items() if former is not None else ():
                made._inherit(folder, file, held)
        except BaseException:
            made.close()
            raise
        return made

    def _open(self, folder: Path, file: str) -> bool:
        real = locate(folder, file)
        if real is None:
            return False
        opened = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._files[file] = _OpenFile(opened, os.fstat(opened).st_size)
        return True

    def _inherit(self, folder: Path, file: str, former: _OpenFile) -> None:
        """The ranges of `former`, if its file is still the one in the folder: while it is open no other can be taken
        for it."""
        if file not in self._files and not self._open(folder, file):
            return
        mine = self._files[file]
        assert mine.opened is not None, "just opened"
        if former.opened is not None and os.path.samestat(os.fstat(mine.opened), os.fstat(former.opened)):
            for start, end in former.spans:
                mine.spans.add(start, end)

    def read(self, file: str, offset: int, length: int) -> Lent:
        held = self._files.get(file)
        if held is None:
            raise _no_such_file(file)
        if held.spans.missing(offset, offset + length):
            raise refuse("model_not_found", f"bytes {offset} to {offset + length} of {file} are not in the slice here")
        with held.lock:
            if held.opened is None:
                raise refuse("model_not_found", f"{file} is not held here any more")
            return read_chunk(held.opened, file, held.size_bytes, offset, length)

    def close(self) -> None:
        for held in self._files.values():
            with held.lock:
                opened, held.opened = held.opened, None
            if opened is not None:
                os.close(opened)


def read_chunk(opened: int, file: str, file_bytes: int, offset: int, length: int) -> Lent:
    """All of [offset, offset + length) of an open file. Raises RefusalError: invalid_value, bad_model."""
    if offset < 0 or length < 0 or offset + length > file_bytes:
        what = f"{file} has {file_bytes} bytes; {offset} to {offset + length} were asked for"
        raise refuse("invalid_value", what, param="offset")
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        try:
            got = os.preadv(opened, [view[done:]], offset + done)
        except OSError as error:
            raise _unreadable(file, error) from error
        if got == 0:
            raise refuse("bad_model", f"{file} ends at byte {offset + done}: it was cut short")
        done += got
    return Lent(data, file_bytes)


def _no_such_file(file: str) -> RefusalError:
    return refuse("invalid_value", f"{file[:80]!r} is no file of this model", param="file")


def _unreadable(file: str, error: OSError) -> RefusalError:
    return refuse("bad_model", f"{file} cannot be read: {error.strerror}")
