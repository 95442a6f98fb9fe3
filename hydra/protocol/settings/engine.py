"""Section [engine]: how generations are computed."""

from typing import Literal, TypeAlias

import attrs

from hydra.protocol.settings.setting import duration

SharePrefixes: TypeAlias = Literal["key", "all"]  # key: cached_tokens tells nobody what another key has sent


@attrs.frozen(kw_only=True)
class EngineSettings:
    block_size: int = 16
    kv_memory_fraction: float = 0.9  # of the memory left beside the weights
    max_batch_tokens: int = 0  # 0: automatic
    max_running: int = 256
    max_waiting: int = 1024
    prefix_cache: bool = True
    share_prefixes: SharePrefixes = "all"
    recovery_deadline: float = duration("120s")
    max_replays: int = 5
