"""The sections of the configuration that plans depend on. Values only, as they were read."""

import attrs

from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings


@attrs.frozen(kw_only=True)
class PlanSettings:
    cluster: ClusterSettings = attrs.field(factory=ClusterSettings)
    engine: EngineSettings = attrs.field(factory=EngineSettings)
    model: ModelSettings = attrs.field(factory=ModelSettings)
