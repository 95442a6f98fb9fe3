"""What this process lends to other machines: chunks of described models' files, by fingerprint and file name.

Promises: only bytes of a file that was lent, as it was when it was lent, and all of those that were asked for; anything
else is a typed refusal. A name from outside is looked up among the names that were lent and never becomes a path.
Any thread may ask. Refuses to know who asks, and how the bytes travel.

A whole model directory is lent by whoever described it (the coordinator), slices by the worker that has loaded them: in
a cache the files have holes, and the worker knows only the ranges that it has loaded to be there.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import attrs

from hydra.protocol.lent import Lent
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.model_spec import Described
from hydra.protocol.model.source import directory_of
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import locate
from hydra.store.files.file_identity import FileIdentity
from hydra.store.files.small_files import LENT_FILES
from hydra.store.lending.lent_file import HeldFile, read_unchanged, unreadable

MODELS_MAX = 64  # lent at a time; beyond, the one lent first is taken back


class LentPlace(Protocol):
    """Where one model's files lie."""

    def read(self, file: str, offset: int, length: int) -> Lent:
        """Raises RefusalError: model_not_found, invalid_value, bad_model."""

    def close(self) -> None: ...


@attrs.define(eq=False)
class FileLender:
    """The places by fingerprint."""

    _places: dict[str, LentPlace] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def lend(self, fingerprint: str, place: LentPlace) -> None:
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
        small = WholeFiles.of(Path(described.folder), LENT_FILES)
        weights = WholeFiles.of(Path(directory_of(described.sources)), {tensor.file for tensor in described.tensors})
        self.lend(described.spec.fingerprint, small.and_those_of(weights))

    def lend_slice(self, order: LoadSlice) -> None:
        """The ranges of an order that was loaded from a folder of this machine, and no other model beside it.

        Ranges of the same model that were lent before stay lent, from the files they lie in: a plan that moves layers
        away has them fetched here, and of layers that are in memory already the order names no tensors. Of other models
        the cache keeps nothing from being removed. Raises OSError, and RefusalError bad_model.
        """
        with self._lock:
            former = self._places.get(order.spec.fingerprint)
        place = HeldOpen.of(Path(directory_of(order.sources)), order, former if isinstance(former, HeldOpen) else None)
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
class WholeFiles:
    """Files of a model directory, opened for each chunk: a model may have hundreds."""

    _files: dict[str, tuple[Path, FileIdentity]]

    @classmethod
    def of(cls, directory: Path, names: Iterable[str]) -> "WholeFiles":
        """Those of `names` that are there. Raises RefusalError bad_model where one leads out of the directory."""
        found = {name: real for name in names if (real := locate(directory, name)) is not None}
        return cls({name: (real, FileIdentity.of(real.stat())) for name, real in found.items()})

    def and_those_of(self, other: "WholeFiles") -> "WholeFiles":
        return WholeFiles({**self._files, **other._files})

    def read(self, file: str, offset: int, length: int) -> Lent:
        if file not in self._files:
            raise _no_such_file(file)
        real, identity = self._files[file]
        try:
            opened = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise unreadable(file, error) from error
        try:
            lent, now = read_unchanged(opened, file, identity, offset, length)
            self._files[file] = (real, now)
            return lent
        finally:
            os.close(opened)

    def close(self) -> None:
        """Nothing is open between two chunks."""


@attrs.frozen
class HeldOpen:
    """The files of one worker's slices, held open, with the ranges that are known to be in them. A file may be there
    more than once: what was loaded from a directory stays good when the rest has come into the cache."""

    _files: dict[str, list[HeldFile]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, folder: Path, order: LoadSlice, former: "HeldOpen | None" = None) -> "HeldOpen":
        """Also what `former` lent. Raises OSError, and RefusalError bad_model where a name leads out of the folder."""
        lender, stored = cls(), {item.file: item for item in order.files}
        try:
            for tensor in order.tensors:
                if tensor.file not in lender._files:
                    real = locate(folder, tensor.file)
                    if real is None:
                        raise FileNotFoundError(folder / tensor.file)
                    lender._files[tensor.file] = [HeldFile.open(real, tensor.file, stored.get(tensor.file))]
                lender._files[tensor.file][0].lend([(tensor.offset, tensor.offset + tensor.length)])
            for held in former.files() if former is not None else ():
                lender._inherit(held)
        except BaseException:
            lender.close()
            raise
        return lender

    def files(self) -> list[HeldFile]:
        return [held for files in self._files.values() for held in files]

    def _inherit(self, former: HeldFile) -> None:
        """What `former` lends and nobody here does, from the same file."""
        mine = self._files.setdefault(former.file, [])
        for held in mine:
            if held.is_same_as(former):
                held.lend(former.spans)
                return
        needed = any(not any(held.has(start, end - start) for held in mine) for start, end in former.spans)
        again = former.again() if needed else None
        if again is not None:
            mine.append(again)

    def read(self, file: str, offset: int, length: int) -> Lent:
        if file not in self._files:
            raise _no_such_file(file)
        refusal = refuse("model_not_found", f"bytes {offset} to {offset + length} of {file} are not in the slice here")
        for held in self._files[file]:
            if held.has(offset, length):
                try:
                    return held.read(offset, length)
                except RefusalError as error:
                    refusal = error
        raise refusal

    def close(self) -> None:
        for held in self.files():
            held.close()


def _no_such_file(file: str) -> RefusalError:
    return refuse("invalid_value", f"{file[:80]!r} is no file of this model", param="file")
