"""What is asked of a cluster: models loaded and unloaded, jobs, readiness, and its status."""

from typing import Literal

import attrs

from hydra.protocol.ids import AskId
from hydra.protocol.messages.membership import Kernels, NodeState
from hydra.protocol.model.model_spec import ModelCard, Quantize
from hydra.protocol.refusal import Refusal


@attrs.frozen(kw_only=True)
class LoadModel:
    """Load (or replace nothing and refuse) a model. Answered by ModelReply when ready, or at once without `wait`."""

    ask: AskId
    model_path: str
    model_id: str | None = None
    total_layers: int | None = None
    dtype: str | None = None
    wait: bool = True
    replicas: int = 1  # deployments that share no node
    quantize: Quantize = "none"


@attrs.frozen(kw_only=True)
class UnloadModel:
    """Forget a model; its running generations end with an error."""

    ask: AskId
    model_id: str


@attrs.frozen(kw_only=True)
class Rebalance:
    """Plan again over the nodes present now; running streams survive by replay."""

    ask: AskId


@attrs.frozen(kw_only=True)
class ModelReply:
    """Answer to LoadModel, UnloadModel and Rebalance. Exactly one of `refusal` and `state` is set.

    `job` names the load while it goes on.
    """

    ask: AskId
    model_id: str | None = None
    state: Literal["loading", "ready", "unloaded", "rebalancing", "unchanged"] | None = None
    refusal: Refusal | None = None
    job: str | None = None


@attrs.frozen(kw_only=True)
class JobsRequest:
    """How far is this load job? None: all that are remembered. Answered by JobsReply."""

    ask: AskId
    job: str | None = None


@attrs.frozen(kw_only=True)
class CancelJob:
    """Stop loading. What was fetched stays in the caches. Answered by JobsReply."""

    ask: AskId
    job: str


@attrs.frozen(kw_only=True)
class NodeLoad:
    """One node's part of a load; bytes as in LoadProgress."""

    node_id: str
    state: Literal["waiting", "fetching", "reading", "loaded"]
    bytes_done: int
    bytes_total: int


@attrs.frozen(kw_only=True)
class JobStatus:
    """A load that was asked for. `refusal` says why it failed or was cancelled."""

    job: str
    model_id: str
    model_path: str  # as asked for
    state: Literal["loading", "ready", "failed", "cancelled"]
    nodes: tuple[NodeLoad, ...]
    refusal: Refusal | None = None


@attrs.frozen(kw_only=True)
class JobsReply:
    """Answer to JobsRequest and CancelJob. Without `refusal`, the jobs asked for."""

    ask: AskId
    jobs: tuple[JobStatus, ...] = ()
    refusal: Refusal | None = None


@attrs.frozen(kw_only=True)
class ModelsChanged:
    """Planner -> every frontend: the models there are now."""

    models: tuple[ModelCard, ...]


@attrs.frozen(kw_only=True)
class StatusRequest:
    """Anyone -> status."""

    ask: AskId


@attrs.frozen(kw_only=True)
class StageStatus:
    model_id: str
    first_layer: int
    end_layer: int
    state: str


@attrs.frozen(kw_only=True)
class NodeStatus:
    node_id: str
    generation: int
    host: str
    pid: int
    state: NodeState
    device: str
    kernels: Kernels
    dtype: str
    memory_total_bytes: int
    memory_free_bytes: int
    last_seen_s: float
    pipeline_addr: str
    stages: tuple[StageStatus, ...]
    why: str = ""  # it is in no plan


@attrs.frozen(kw_only=True)
class ProcessStatus:
    role: str
    pid: int


@attrs.frozen(kw_only=True)
class ModelStatus:
    model_id: str
    model_path: str
    architecture: str
    total_layers: int
    state: str
    epoch: str
    max_model_len: int
    kv_blocks_total: int
    kv_blocks_free: int
    running: int
    waiting: int
    replicas: int = 1  # deployments that are wanted
    replicas_ready: int = 0
    quantize: Quantize = "none"


@attrs.frozen(kw_only=True)
class Sample:
    """One metric value; names and labels come from fixed sets, never from a request."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    value: float  # of a histogram: the sum of all that was observed
    labels: tuple[tuple[str, str], ...] = ()
    buckets: tuple[tuple[float, int], ...] = ()  # of a histogram: each bound, and how many were not above it
    count: int = 0  # of a histogram: how many there were


@attrs.frozen(kw_only=True)
class LossStatus:
    """A process that was lost, and what its loss cost."""

    time_s: float  # since 1970
    node_id: str
    why: str
    interrupted: int = 0  # answers that waited for it
    longest_pause_s: float | None = None  # of those that went on


@attrs.frozen(kw_only=True)
class StatusReply:
    """The cluster as one value: what /api/cluster/status and /metrics show."""

    ask: AskId
    epoch: int
    ready: bool
    nodes: tuple[NodeStatus, ...]
    processes: tuple[ProcessStatus, ...]
    models: tuple[ModelStatus, ...]
    samples: tuple[Sample, ...] = ()
    losses: tuple[LossStatus, ...] = ()  # the last ones, oldest first


@attrs.frozen(kw_only=True)
class ReadyRequest:
    """Can a request be served now, by one of `models` (empty: by any)? An idle route is sent a probe token."""

    ask: AskId
    models: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class ReadyReply:
    ask: AskId
    ready: bool
    why: str = ""
    retry_after_s: float | None = None
