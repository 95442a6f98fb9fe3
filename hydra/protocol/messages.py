"""Every sentence the cluster can say on the command lane, and the one union that closes the list.

Grouped by conversation; SPEC.md says who may say what when. A class does not know its wire form (`codec`), and a new
message that somebody forgets to handle fails type checking at the first `assert_never`, not in production.
"""

from typing import Literal, TypeAlias

import attrs
import numpy as np

from hydra.protocol.batch import Int32Column, Logprobs, int32
from hydra.protocol.ids import AskId, Attempt, Epoch, Generation, NodeId, RouteId, SessionId, StepId
from hydra.protocol.model.model_spec import Dtype, ModelCard, ModelSpec, StoredFile, TensorRange
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import SamplingParams

PROTOCOL_VERSION = 5
Role = Literal["worker", "frontend", "parent"]
LoadPhase = Literal["fetching", "reading"]
NodeState = Literal["joining", "ready", "suspect", "unreachable", "draining", "lost"]
Kernels = Literal["torch", "triton"]  # what decodes: torch's own alone, or with ours for one token per row


def _ids() -> Int32Column:
    return attrs.field(eq=attrs.cmp_using(eq=np.array_equal), converter=int32)


# ---------------------------------------------------------------- greeting


@attrs.frozen(kw_only=True)
class DeviceOffer:
    """What a worker brings: one device, the dtypes it runs natively, and the memory it lets us use."""

    device: str  # "cpu", "cuda:0", "mps"
    name: str  # for people
    dtypes: tuple[Dtype, ...]
    memory_total_bytes: int
    memory_free_bytes: int
    kernels: Kernels = "torch"


@attrs.frozen(kw_only=True)
class Held:
    """Layers whose weights a worker has in memory now, so that a plan can prefer them."""

    fingerprint: str
    dtype: Dtype
    layers: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Hello:
    """First words of a process. Answered by Welcome or HelloRefused; said again whenever SayHello asks."""

    node_id: NodeId
    role: Role
    version: int
    capabilities: tuple[str, ...]
    auth: str  # join token; empty on loopback
    host: str
    pid: int
    term_seen: int  # the highest term this process has heard of
    device: DeviceOffer | None = None  # workers only
    pipeline_addr: str | None = None  # workers only: where the stage's PULL socket can be reached
    store_addr: str | None = None  # where this process answers on the store lane, if it does
    held: tuple[Held, ...] = ()
    family: str = ""  # a secret of a parent and the children it started: only among them one speaks of the other


@attrs.frozen(kw_only=True)
class Welcome:
    """You are in. `generation` is yours until you are expelled or greet again."""

    generation: Generation
    term: int
    heartbeat_s: float
    results_addr: str  # where the last stage of a route sends its results
    models: tuple[ModelCard, ...] = ()  # frontends only


@attrs.frozen(kw_only=True)
class HelloRefused:
    """You are not in: wrong version, wrong token, or the name is taken by a living process."""

    refusal: Refusal


@attrs.frozen(kw_only=True)
class SayHello:
    """I do not know you under this generation (I may have restarted). Greet again, unless you have another by now."""

    term: int
    generation: Generation


@attrs.frozen(kw_only=True)
class Expelled:
    """This generation is over. Fence yourself, drop KV, keep weights as inventory, greet again."""

    generation: Generation
    why: str


@attrs.frozen(kw_only=True)
class Goodbye:
    """I leave in good order; there is nothing more from this generation."""

    generation: Generation
    why: str


# ---------------------------------------------------------------- leases


@attrs.frozen(kw_only=True)
class StageProgress:
    """How far a stage has come: the blame for a late step is on the first that accepted and did not send."""

    route: RouteId
    epoch: Epoch
    accepted: StepId
    sent: StepId
    running_s: float | None  # how long the step in hand has been running; None: idle


@attrs.frozen(kw_only=True)
class Heartbeat:
    """I am here; sent every heartbeat interval. Three missed make a suspect."""

    generation: Generation
    memory_free_bytes: int
    stale_dropped: int  # steps of another epoch refused so far (monotonic within a process)
    progress: tuple[StageProgress, ...] = ()
    log_lines_lost: int = 0  # that could not be written so far (monotonic within a process)


@attrs.frozen(kw_only=True)
class HeartbeatSeen:
    """The coordinator's answer to a beat. It says nothing new; its number in the count does."""

    generation: Generation


@attrs.frozen(kw_only=True)
class Beacon:
    """The coordinator's own lease, broadcast every heartbeat: an unknown term means it restarted; greet again."""

    term: int
    number: int
    counter: int


# ---------------------------------------------------------------- parents and children


@attrs.frozen(kw_only=True)
class ChildExited:
    """A parent saw its child's exit: no lease has to run out."""

    node_id: NodeId
    pid: int
    how: str  # "signal 9", "exit 1"


@attrs.frozen(kw_only=True)
class KillWorker:
    """Its process is stuck past its step lease: SIGKILL it; the supervisor brings it back."""

    node_id: NodeId
    pid: int
    why: str


@attrs.frozen(kw_only=True)
class SpawnWorker:
    """Start (or restart now, without back-off) the worker of this name on your machine."""

    node_id: NodeId


# ---------------------------------------------------------------- plans


@attrs.frozen(kw_only=True)
class LoadSlice:
    """Planner -> Stage. Fence at this epoch, free the pool, hold exactly these layers, answer SliceLoaded.

    `tensors` are the byte ranges of the slice, `files` all weights files of the model, `sources` where to read them,
    best first: an absolute path (a directory, if it is there and its fingerprint is equal), `hub:org/name@commit`, or
    `lane:tcp://HOST:PORT,...`, all who may lend it.
    """

    route: RouteId
    epoch: Epoch
    spec: ModelSpec
    dtype: Dtype
    first_layer: int
    end_layer: int
    tensors: tuple[TensorRange, ...]
    sources: tuple[str, ...]
    files: tuple[StoredFile, ...] = ()
    block_size: int
    kv_memory_bytes: int  # the pool may use so much of this node's memory


@attrs.frozen(kw_only=True)
class LoadProgress:
    """Stage -> Planner while loading: a few hundred times per load, and every few seconds while bytes come.

    Bytes of the slice: first those that are on this machine ("fetching"), then those read from it ("reading").
    """

    route: RouteId
    epoch: Epoch
    bytes_done: int
    bytes_total: int
    phase: LoadPhase = "reading"


@attrs.frozen(kw_only=True)
class SliceLoaded:
    """Stage -> Planner. The weights are in place and the old pool is gone; so many KV blocks would fit."""

    route: RouteId
    epoch: Epoch
    kv_blocks_max: int
    weight_bytes: int
    read_bytes: int
    load_s: float


@attrs.frozen(kw_only=True)
class LoadFailed:
    """Stage -> Planner, of a load or an activation. Nothing half-loaded is left behind."""

    route: RouteId
    epoch: Epoch
    refusal: Refusal


@attrs.frozen(kw_only=True)
class Activate:
    """Planner -> Stage. Make the pool, warm up, connect to the next hop, answer Ready."""

    route: RouteId
    epoch: Epoch
    kv_blocks: int
    next_addr: str  # the next stage's pipeline address, or the results address after the last
    credits: int  # micro-batches that may be in flight: the bound of every data queue on this route
    stage_index: int
    n_stages: int


@attrs.frozen(kw_only=True)
class Ready:
    """Stage -> Planner. I accept steps of this epoch."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class Fenced:
    """Stage -> Planner, from the compute thread itself: nothing older than this epoch will leave me any more."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class DropSlice:
    """Planner -> Stage. Fence, free the pool and forget the weights of this route."""

    route: RouteId
    epoch: Epoch


@attrs.frozen(kw_only=True)
class RouteBroken:
    """Stage or Broker -> Planner. A gap in the steps, or a next hop that takes nothing: this epoch is finished.

    `side`: what fails is how the sender is reached ("in": steps to a stage, results to the Broker), or its own sending.
    """

    route: RouteId
    epoch: Epoch
    why: str
    side: Literal["in", "out"]


# ---------------------------------------------------------------- who can reach whom


@attrs.frozen(kw_only=True)
class Dial:
    """Planner -> a worker's Scout. Do they answer? On the data lane `step_addrs`, on the store lane `store_addrs`."""

    ask: AskId
    step_addrs: tuple[str, ...]
    store_addrs: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Unanswered:
    """An address that was dialled in vain."""

    addr: str
    reason: str


@attrs.frozen(kw_only=True)
class Dialled:
    """Scout -> Planner. All that were not named have answered."""

    ask: AskId
    unanswered: tuple[Unanswered, ...]


@attrs.frozen(kw_only=True)
class ReachReport:
    """Planner -> a worker's Member. Why no plan has you; empty: from now on plans may have you."""

    generation: Generation
    fault: str


# ---------------------------------------------------------------- models and questions (anyone <-> desk)


@attrs.frozen(kw_only=True)
class LoadModel:
    """Load (or replace nothing and refuse) a model. Answered by ModelReply when ready, or at once without `wait`."""

    ask: AskId
    model_path: str
    model_id: str | None = None
    total_layers: int | None = None
    dtype: str | None = None
    wait: bool = True


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
    """Anyone -> desk."""

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


@attrs.frozen(kw_only=True)
class Sample:
    """One metric value; names and labels come from fixed sets, never from a request."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


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


# ---------------------------------------------------------------- generations (frontend's Session <-> Broker)


@attrs.frozen(kw_only=True)
class Open:
    """Session -> Broker. Serve me from `history` on: the prompt, plus what I have already shown (a replay).

    `max_tokens` counts generated tokens over all attempts; `deaths` counts stage deaths this session was in flight
    at. A replayed session is never refused for capacity. Rows are shared between owners and their requests.
    """

    session: SessionId
    attempt: Attempt
    model_id: str
    history: Int32Column = _ids()
    prompt_tokens: int
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    deaths: int = 0
    request: int = 0  # all answers of one request of this frontend have one number; 0: it stands for itself
    owner: str = ""  # a digest of the API key that was presented, never the key; empty: none was


@attrs.frozen(kw_only=True)
class OpenRefused:
    """Broker -> Session. The end of this session."""

    session: SessionId
    attempt: Attempt
    refusal: Refusal


@attrs.frozen(kw_only=True)
class Reopen:
    """Broker -> Session. Your row is gone; send Open with attempt + 1. `death`: it was in flight when a stage died."""

    session: SessionId
    attempt: Attempt
    why: Literal["epoch", "preempted", "coordinator"]
    death: bool = False


FINISH_NONE, FINISH_STOP, FINISH_LENGTH = 0, 1, 2
OWNER_LENGTH_MAX = 64  # characters


@attrs.frozen(kw_only=True)
class Tokens:
    """Broker -> one frontend: the tokens of one step, in columns. `finish` is one of FINISH_*.

    `position[i]` is the token's index in its session's history; `cached[i]` how many prompt tokens came from the
    prefix cache.
    """

    session: Int32Column = _ids()
    attempt: Int32Column = _ids()
    position: Int32Column = _ids()
    token: Int32Column = _ids()
    finish: Int32Column = _ids()
    cached: Int32Column = _ids()
    logprobs: Logprobs | None = None  # rows as in the columns


@attrs.frozen(kw_only=True)
class Close:
    """Session -> Broker. Stop string, or the client left: free the row."""

    session: SessionId
    attempt: Attempt


Message: TypeAlias = (
    Hello
    | Welcome
    | HelloRefused
    | SayHello
    | Expelled
    | Goodbye
    | Heartbeat
    | HeartbeatSeen
    | Beacon
    | ChildExited
    | KillWorker
    | SpawnWorker
    | LoadSlice
    | LoadProgress
    | SliceLoaded
    | LoadFailed
    | Activate
    | Ready
    | Fenced
    | DropSlice
    | RouteBroken
    | Dial
    | Dialled
    | ReachReport
    | LoadModel
    | UnloadModel
    | Rebalance
    | ModelReply
    | JobsRequest
    | CancelJob
    | JobsReply
    | ModelsChanged
    | StatusRequest
    | StatusReply
    | ReadyRequest
    | ReadyReply
    | Open
    | OpenRefused
    | Reopen
    | Tokens
    | Close
)
