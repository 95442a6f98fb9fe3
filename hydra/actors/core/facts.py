"""What the actors of one process tell one another. Facts never travel on a wire; messages do.

Registry -> Planner: who is there. Planner -> Broker: which routes carry work. Broker -> Registry: what is late.
"""

from typing import Literal

import attrs

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch, Generation, NodeId, PeerId, RouteId, StepId
from hydra.protocol.messages import Message
from hydra.protocol.messages.membership import DeviceOffer, Held, Welcome
from hydra.protocol.model.decoder_spec import LengthRule
from hydra.protocol.refusal import Refusal


@attrs.frozen(kw_only=True)
class NodeJoined:
    """Registry -> Planner: a worker was granted a generation."""

    node: NodeId
    peer: PeerId
    generation: Generation
    offer: DeviceOffer
    pipeline_addr: Endpoint
    held: tuple[Held, ...]
    term_seen: int
    store_addr: Endpoint | None = None


@attrs.frozen(kw_only=True)
class NodeLost:
    """Registry -> Planner: the last word on one generation; it is never taken back."""

    node: NodeId
    generation: Generation
    why: str


@attrs.frozen
class LaneBroken:
    """Gateway -> Registry, Member: something that this peer said never arrived, or was more than an actor could
    bear."""

    peer: PeerId
    why: str = "some of its messages were lost"


@attrs.frozen
class Undelivered:
    """Gateway -> the sender of this message: it is beyond the limits of its lane, and will never arrive."""

    to: Address
    message: Message
    refusal: Refusal


@attrs.frozen(kw_only=True)
class NodeSuspect:
    """Registry -> Planner: no new work for this node until it is heard again (`suspect` False)."""

    node: NodeId
    suspect: bool


@attrs.frozen(kw_only=True)
class FrontendJoined:
    """Registry -> Planner: a frontend was granted a generation."""

    peer: PeerId


@attrs.frozen(kw_only=True)
class FrontendLost:
    """Registry -> Planner, Broker: the generation of this frontend is over."""

    peer: PeerId


@attrs.frozen(kw_only=True)
class TermRaised:
    """Registry -> Planner: somebody out there served a later term than we knew; from now on ours is this."""

    term: int


@attrs.frozen(kw_only=True)
class RouteUp:
    """Planner -> Broker: every stage acked Ready(epoch); work may flow."""

    model_id: str
    route: RouteId
    epoch: Epoch
    nodes: tuple[NodeId, ...]  # in stage order
    first_addr: Endpoint
    kv_blocks: int
    block_size: int
    max_model_len: int
    credits: int
    vocab: int
    length_rule: LengthRule | None = None


@attrs.frozen(kw_only=True)
class RouteDown:
    """Planner -> Broker: nothing of this route's epoch counts any more. `death`: because a stage died."""

    model_id: str
    route: RouteId
    death: bool


@attrs.frozen(kw_only=True)
class ModelKnown:
    """Planner -> Broker: opens for this model wait until RouteUp."""

    model_id: str
    max_model_len: int


@attrs.frozen(kw_only=True)
class ModelStalled:
    """Planner -> Broker: no plan fits now. New opens are refused with this; replays wait. None: it goes on."""

    model_id: str
    refusal: Refusal | None


@attrs.frozen(kw_only=True)
class ModelGone:
    """Planner -> Broker: end whatever waits or runs for this model, for this reason."""

    model_id: str
    refusal: Refusal
    forget: bool  # False: the model stays wanted, and later opens wait again


@attrs.frozen(kw_only=True)
class StepOverdue:
    """Broker -> Registry: this step should have been back long ago. Who has it?"""

    route: RouteId
    epoch: Epoch
    step: StepId
    nodes: tuple[NodeId, ...]


@attrs.frozen(kw_only=True)
class StepVanished:
    """Registry -> Planner: a step is overdue and no stage holds it: it vanished on the way to stage `stage_index` (as
    many as there are: on the way from the last one to the Broker).
    """

    route: RouteId
    epoch: Epoch
    why: str
    stage_index: int


@attrs.frozen(kw_only=True)
class RouteServed:
    """Broker -> Planner: the first token of this epoch came through, or nobody waits for one."""

    model_id: str
    epoch: Epoch


@attrs.frozen(kw_only=True)
class Joined:
    """Member -> its siblings: the coordinator took us in."""

    welcome: Welcome


@attrs.frozen(kw_only=True)
class Left:
    """Member -> its siblings: our generation is over (expelled, or the coordinator is another one now)."""

    why: Literal["expelled", "new term"]
