"""How a process greets, keeps its lease and leaves; and what a parent says of its children.

A class does not know its wire form (`codec`), nor who may say it (SPEC.md).
"""

from typing import Literal

import attrs

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, Generation, NodeId, RouteId, StepId
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import Quantize
from hydra.protocol.refusal import Refusal

PROTOCOL_VERSION = 7
MemberRole = Literal["worker", "frontend", "parent"]
NodeState = Literal["joining", "ready", "suspect", "unreachable", "draining", "lost"]
Kernels = Literal["torch", "triton"]  # what decodes: torch's own alone, or with ours for one token per row


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
    quantize: Quantize = "none"


@attrs.frozen(kw_only=True)
class Hello:
    """First words of a process. Answered by Welcome or HelloRefused; said again whenever SayHello asks."""

    node_id: NodeId
    role: MemberRole
    version: int
    auth: str  # join token; empty on loopback
    host: str
    pid: int
    term_seen: int  # the highest term this process has heard of
    device: DeviceOffer | None = None  # workers only
    pipeline_addr: Endpoint | None = None  # workers only: where the stage's PULL socket can be reached
    store_addr: Endpoint | None = None  # where this process answers on the store lane, if it does
    held: tuple[Held, ...] = ()
    family: str = ""  # a secret of a parent and the children it started: only among them one speaks of the other


@attrs.frozen(kw_only=True)
class Welcome:
    """You are in. `generation` is yours until you are expelled or greet again."""

    generation: Generation
    term: int
    heartbeat_s: float
    results_addr: Endpoint  # where the last stage of a route sends its results


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


@attrs.frozen(kw_only=True)
class StageProgress:
    """How far a stage has come: the blame for a late step is on the first that accepted and did not send."""

    route: RouteId
    epoch: Epoch
    accepted: StepId
    sent: StepId


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
