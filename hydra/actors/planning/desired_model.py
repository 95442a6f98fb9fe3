"""What is wanted: models that should be there, on which terms, and what the Planner and its process say of them.

Values only, made by the front door, the state directory and the coordinator's shell; whether and where they are
served is the Planner's.
"""

import math

import attrs

from hydra.protocol.ids import NodeId
from hydra.protocol.messages.models import NodeLoad
from hydra.protocol.model.model_spec import Described, Quantize
from hydra.protocol.refusal import Refusal


@attrs.frozen
class Describe:
    """Effect: read this model directory in a thread; answer WasDescribed or NotDescribed."""

    model_path: str


@attrs.frozen
class DesiredModelFailed:
    """Effect: a model that was desired at start cannot be served. It is tried again; a first start may give up."""

    refusal: Refusal


@attrs.frozen
class LoadMoved:
    """Effect: something of a model has been fetched or read by a node; for people to see."""

    model_id: str
    load: NodeLoad


@attrs.frozen
class NodeNoted:
    """Effect: a node cannot be counted on, or can be again (`fault` empty); for people to see."""

    node: NodeId
    fault: str


@attrs.frozen
class ModelNoted:
    """Effect: something that was asked for does not happen; for people to see."""

    model_id: str
    reason: str


@attrs.frozen
class CheckSource:
    """Effect: are the files of this model where they were? Answer SourceChecked."""

    model_id: str
    described: Described


@attrs.frozen
class SourceChecked:
    """Event: `fault` says why they cannot be read; empty: they can."""

    model_id: str
    fault: str


@attrs.frozen
class WasDescribed:
    """Event: the model directory was read."""

    model_path: str  # as asked for
    described: Described


@attrs.frozen
class NotDescribed:
    """Event: the model directory cannot be read."""

    model_path: str
    refusal: Refusal


@attrs.frozen
class DesiredModel:
    """A model that should be there: what the state directory remembers."""

    model_path: str
    model_id: str | None = None
    dtype: str | None = None
    pinned: str | None = None  # the commit that a Hub id meant when it was first described
    replicas: int = 1  # deployments, on nodes of their own each
    quantize: Quantize = "none"

    @property
    def place(self) -> str:
        """What is to be described: always the same weights, also after the branch has moved on."""
        return self.pinned or self.model_path


@attrs.frozen
class SaveState:
    """Effect: term, desired models and the last placement's nodes are to be on disk before anything is sent."""

    term: int
    desired: tuple[DesiredModel, ...]
    nodes: tuple[NodeId, ...]


@attrs.frozen
class Recover:
    """Event: the coordinator is up. Waited for are `expected` workers, all of `local` among them, at most `patience_s`,
    and those `nodes` that computed in a former life, at most `nodes_s` (and `patience_s`).
    """

    desired: tuple[DesiredModel, ...]
    expected: int
    nodes: tuple[NodeId, ...]
    patience_s: float
    nodes_s: float = math.inf
    local: tuple[NodeId, ...] = ()
