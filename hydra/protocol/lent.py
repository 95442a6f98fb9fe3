"""A chunk of a model's file, as one machine lends it to another. Refuses to know which file it is and where it lies."""

import attrs

from hydra.protocol.blob import Buffer


@attrs.frozen
class Lent:
    """The chunk, and the size of the whole file."""

    data: Buffer
    file_bytes: int
