"""Section [model]: what is served at start, how, and where its files are kept."""

from typing import Literal

import attrs

from hydra.protocol.settings.setting import secret
from hydra.protocol.units import GIGABYTE


@attrs.frozen(kw_only=True)
class ModelSettings:
    path: str = ""
    built_in: str = "auto"  # what `up` serves where no path is given
    id: str = ""
    dtype: str = "auto"
    quantize: Literal["none", "int8", "int4"] = "none"  # while it is loaded
    max_model_len: int = 0
    replicas: int = 1  # deployments of the model, on workers of their own each
    chat_template: str = ""
    cache_dir: str = "~/.cache/hydra/models"
    hf_token: str = secret()
    max_cache_gb: float = 100.0

    @property
    def max_cache_bytes(self) -> int:
        return int(self.max_cache_gb * GIGABYTE)
