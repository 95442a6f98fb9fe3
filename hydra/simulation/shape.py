"""What a simulated cluster looks like: numbers only."""

import attrs

from hydra.protocol.settings.engine import EngineSettings
from hydra.simulation.pocket_model import MODEL_PATH


@attrs.frozen(kw_only=True)
class Shape:
    """What the cluster looks like."""

    workers: int = 2
    replicas: int = 1  # deployments of the model
    layers: int = 6
    frontends: int = 1
    parent: bool = True  # somebody sees children exit and kills those that are stuck
    kv_blocks: int = 256
    memory_bytes: int = 64_000_000_000  # of each worker; a layer takes 100 MB
    engine: EngineSettings = EngineSettings(block_size=4, max_running=64, max_replays=20)
    step_tokens_max: tuple[int, ...] = ()  # what each worker has memory for in a step, in their order; 0: for any
    http: bool = False  # readers come through the HTTP app, streaming
    model_path: str = MODEL_PATH  # a directory with a tokenizer, for `http`
    step_s: float = 0.004
    token_s: float = 0.0003
