"""A head that is stored although config.json ties it to the embedding.

Promises: a head is passed over only where it was compared with the embedding in full and is the same, byte for byte;
any other is used, whatever the config says of it. transformers does the same since version 5. Refuses to know who asks.
"""

from collections.abc import Mapping

import structlog

from hydra.store.formats.safetensors_header import Header
from hydra.store.models.names import Names
from hydra.store.models.stored_tensors import Located
from hydra.store.models.weight_files import WeightFiles

log = structlog.get_logger()


def own_head(files: WeightFiles, names: Names, shards: Mapping[str, Header], *, tied: bool | None) -> str | None:
    """The file with a head that must be used; None when there is none, or only the embedding once more.

    `tied` is what somebody found who has compared them already. None: nobody has; then this blocks for as long as
    reading both tensors takes, if they are here and the same.
    """
    head, embedding = _find(f"{names.head}.weight", shards), _find(f"{names.embedding}.weight", shards)
    if head is None or tied:
        return None
    if tied is None and embedding is not None and _same(files, head, embedding):
        return None
    log.warning(
        "config.json ties the head to the embedding, but one that differs or cannot be compared is stored: it is used",
        head=head[1].name,
        file=head[0],
        folder=str(files.folder),
    )
    return head[0]


def _same(files: WeightFiles, one: Located, other: Located) -> bool:
    return (one[1].file_dtype, one[1].shape) == (other[1].file_dtype, other[1].shape) and files.same_bytes(one, other)


def _find(tensor: str, shards: Mapping[str, Header]) -> Located | None:
    """Where it lies, whether or not the index names it."""
    return next(((file, header.tensors[tensor]) for file, header in shards.items() if tensor in header.tensors), None)
