"""What loading a slice came to: said by whoever computes, heard by the stage machine."""

import attrs


@attrs.frozen(kw_only=True)
class SliceFacts:
    """Bytes and seconds of one load, and the room that is left."""

    weight_bytes: int  # in memory, in the route's dtype
    read_bytes: int  # from the sources; 0 for layers that were already here
    kv_blocks_max: int
    load_s: float
    pack_s: float = 0.0  # of these, for bringing matrices into the device's own layout
