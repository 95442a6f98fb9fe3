"""The tensors of a model's opened weights files, by their names.

Promises: a tensor that is handed out lies in the file that the index puts it into. Refuses to know what any is for.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import attrs

from hydra.protocol.refusal import refuse
from hydra.store.formats.safetensors_header import Header, StoredTensor

Located: TypeAlias = tuple[str, StoredTensor]  # the file, and the tensor in it


@attrs.frozen
class StoredTensors:
    """`placed` is the index, the file of each tensor; `shards` the headers of the files that may be needed."""

    placed: Mapping[str, str]
    shards: Mapping[str, Header]
    index: str

    def find(self, name: str) -> Located | None:
        """None when the index has no such tensor. Raises RefusalError bad_model where it is wrong."""
        file = self.placed.get(name)
        if file is None:
            return None
        header = self.shards.get(file)
        stored = None if header is None else header.tensors.get(name)
        if stored is None:
            raise refuse("bad_model", f"{self.index} puts {name!r} into {file}, which does not hold it.")
        return file, stored

    def names(self) -> Iterable[str]:
        """Of all tensors, those too that only a file itself speaks of."""
        return self.placed.keys() | {name for header in self.shards.values() for name in header.tensors}
