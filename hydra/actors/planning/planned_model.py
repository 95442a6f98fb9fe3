"""One wished model and how far it has come. Promises only that the record is one; the Planner decides everything."""

from typing import Literal

import attrs

from hydra.actors.core.machine import Effect, Send
from hydra.actors.planning.desired_model import DesiredModel
from hydra.actors.planning.outage import Outage
from hydra.actors.planning.placement import Route
from hydra.protocol.ids import Address, AskId
from hydra.protocol.messages.models import ModelReply
from hydra.protocol.model.model_spec import Described, ModelCard
from hydra.protocol.refusal import Refusal

Phase = Literal["describing", "waiting", "loading", "activating", "ready", "failed"]
_SHOWN: dict[Phase, Literal["loading", "ready", "degraded", "failed"]] = {
    "ready": "ready",
    "failed": "failed",
    "waiting": "degraded",
}


@attrs.define(eq=False)
class PlannedModel:
    """Those in `asks` wait for its first Ready, or for the refusal."""

    desired: DesiredModel
    model_id: str
    job: str
    asks: list[tuple[Address, AskId]] = attrs.field(factory=list)
    described: Described | None = None
    total_layers: int | None = None
    phase: Phase = "describing"
    route: Route | None = None
    created_s: int = 0
    why: str = ""
    kept: bool = False  # wished for at start: it stays wanted whatever happens, until somebody unloads it
    served: bool = False  # it has been ready in this life of the coordinator
    outage: Outage | None = None  # it has no route that serves; the recovery deadline runs
    dialling: bool = False  # the hops of a new plan are being tried

    def context(self, max_model_len: int) -> int:
        """Tokens a sequence may have: what the route has room for, else what is set, else what the model can."""
        if self.route is not None and self.route.max_model_len:
            return self.route.max_model_len
        assert self.described is not None
        return max_model_len or self.described.spec.max_positions

    def card(self, max_model_len: int) -> ModelCard | None:
        """The model as frontends see it; None while its files are not understood."""
        if self.described is None:
            return None
        spec = self.described.spec
        return ModelCard(
            model_id=self.model_id,
            model_path=self.described.model_path,
            architecture=spec.architecture,
            state=_SHOWN.get(self.phase, "loading"),
            created_s=self.created_s,
            max_model_len=self.context(max_model_len),
            vocab=spec.vocab,
            eos_ids=spec.eos_ids,
            dtype=self.route.dtype if self.route else spec.stored_dtype,
            total_layers=spec.n_layers,
            default_sampling=spec.default_sampling,
            folder=self.described.folder,
            hub_commit=self.described.hub_commit,
            load=self.job,
        )

    def answer(self, *, state: Literal["ready"] | None = None, refusal: Refusal | None = None) -> list[Effect]:
        """Tells everybody who waits, once."""
        asks, self.asks = self.asks, []
        told = [ModelReply(ask=ask, model_id=self.model_id, state=state, refusal=refusal) for _, ask in asks]
        return [Send(sender, message) for (sender, _), message in zip(asks, told, strict=True)]
