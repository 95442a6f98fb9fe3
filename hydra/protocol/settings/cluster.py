"""Section [cluster]: who belongs to it, and what is kept free on its devices."""

import attrs

from hydra.protocol.settings.setting import duration, secret
from hydra.protocol.units import GIGABYTE


@attrs.frozen(kw_only=True)
class ClusterSettings:
    node_id: str = "coordinator"
    heartbeat_interval: float = duration("500ms")
    unhealthy_threshold: int = 3
    reserved_vram_gb: float = 2.0
    memory_per_layer_gb: float = 0.5
    policy: str = "vram"
    join_token: str = secret()
    min_nodes: int = 0

    @property
    def reserved_vram_bytes(self) -> int:
        return int(self.reserved_vram_gb * GIGABYTE)

    @property
    def suspect_after_s(self) -> float:
        """A member that says nothing for longer is suspect."""
        return self.unhealthy_threshold * self.heartbeat_interval
