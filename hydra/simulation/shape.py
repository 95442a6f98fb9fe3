"""What a simulated cluster looks like: numbers only."""

import attrs

from hydra.simulation.pocket_model import MODEL_PATH


@attrs.frozen(kw_only=True)
class Shape:
    """What the cluster looks like."""

    workers: int = 2
    layers: int = 6
    frontends: int = 1
    parent: bool = True  # somebody sees children exit and kills those that are stuck
    block_size: int = 4
    kv_blocks: int = 256
    memory_bytes: int = 64_000_000_000  # of each worker; a layer takes 100 MB
    running_max: int = 64
    batch_tokens: int = 0
    prefix_cache: bool = True
    max_replays: int = 20
    step_tokens_max: tuple[int, ...] = ()  # what each worker has memory for in a step, in their order; 0: for any
    http: bool = False  # readers come through the HTTP app, streaming
    model_path: str = MODEL_PATH  # a directory with a tokenizer, for `http`
    step_s: float = 0.004
    token_s: float = 0.0003
