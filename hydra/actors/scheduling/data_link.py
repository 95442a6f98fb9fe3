"""What the Broker asks of the data lane, and what comes back from it. Values only; the coordinator performs them."""

import attrs

from hydra.protocol.batch import Step, StepResult
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Epoch, RouteId


@attrs.frozen
class OpenLink:
    """Effect: a fresh data link to the first stage of this epoch; the route's former one is closed."""

    route: RouteId
    epoch: Epoch
    addr: Endpoint
    credits: int


@attrs.frozen
class CloseLink:
    """Effect: drop the route's link with everything queued in it."""

    route: RouteId


@attrs.frozen
class SendStep:
    """Effect: onto the route's link. The link's bound is the route's credits, so it never fills."""

    step: Step


@attrs.frozen
class StepBack:
    """Event: the last stage of a route answered."""

    result: StepResult


@attrs.frozen
class LinkFull:
    """Event: the first stage takes nothing."""

    route: RouteId
    epoch: Epoch
