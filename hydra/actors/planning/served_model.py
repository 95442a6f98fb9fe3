"""A served model: the id that clients ask for, what is wanted of it, its deployments. A record; it decides nothing."""

from typing import Literal

import attrs

from hydra.actors.core.machine import Effect, Send
from hydra.actors.planning.deployment import Deployment
from hydra.actors.planning.desired_model import DesiredModel
from hydra.protocol.ids import Address, AskId
from hydra.protocol.messages.models import ModelReply
from hydra.protocol.model.model_spec import Described, ModelCard
from hydra.protocol.refusal import Refusal

ModelPhase = Literal["describing", "waiting", "loading", "activating", "ready"]
FURTHEST: tuple[ModelPhase, ...] = ("ready", "activating", "loading", "waiting", "describing")
_SHOWN: dict[ModelPhase, Literal["ready", "degraded"]] = {"ready": "ready", "waiting": "degraded"}


@attrs.define(eq=False)
class ServedModel:
    """Those in `asks` wait for the first deployment to come up, or for the refusal."""

    desired: DesiredModel
    model_id: str
    job: str
    asks: list[tuple[Address, AskId]] = attrs.field(factory=list)
    total_layers: int | None = None  # as whoever asked for it believes
    created_s: int = 0
    described: Described | None = attrs.field(default=None, init=False)
    describing: bool = attrs.field(default=True, init=False)
    missed: bool = attrs.field(default=False, init=False)  # it could not be described; those who wait have a deadline
    reason: str = attrs.field(default="", init=False)  # why not, for people
    deployments: list[Deployment] = attrs.field(factory=list, init=False)
    kept: bool = attrs.field(default=False, init=False)  # desired at start: it stays until somebody unloads it
    served: bool = attrs.field(default=False, init=False)  # it has been ready in this life of the coordinator

    @property
    def phase(self) -> ModelPhase:
        """How far the deployment is that has come furthest."""
        if self.describing:
            return "describing"
        phases = {deployment.phase for deployment in self.deployments}
        return next((phase for phase in FURTHEST if phase in phases), "waiting")

    @property
    def is_lasting(self) -> bool:
        """Whether it stays wanted where it cannot be served now. Of a first load, who asked is told instead."""
        return not self.asks and (self.kept or self.served)

    def others(self, deployment: Deployment) -> list[Deployment]:
        """Its deployments but for this one."""
        return [other for other in self.deployments if other is not deployment]

    def context(self, max_model_len: int) -> int:
        """Tokens a sequence may have: what its routes have room for, else what is set, else what the model can."""
        routes = [deployment.route for deployment in self.deployments if deployment.route is not None]
        up = [d.route.max_model_len for d in self.deployments if d.phase == "ready" and d.route is not None]
        longest = max(up or (route.max_model_len for route in routes), default=0)
        assert self.described is not None
        return longest or max_model_len or self.described.spec.max_positions

    def card(self, max_model_len: int) -> ModelCard | None:
        """The model as frontends see it; None while its files are not understood."""
        if self.described is None:
            return None
        spec = self.described.spec
        dtypes = [deployment.route.dtype for deployment in self.deployments if deployment.route is not None]
        return ModelCard(
            model_id=self.model_id,
            model_path=self.described.model_path,
            architecture=spec.architecture,
            state=_SHOWN.get(self.phase, "loading"),
            created_s=self.created_s,
            max_model_len=self.context(max_model_len),
            vocab=spec.vocab,
            eos_ids=spec.eos_ids,
            dtype=dtypes[0] if dtypes else spec.stored_dtype,
            total_layers=spec.n_layers,
            quantize=spec.quantize,
            default_sampling=spec.default_sampling,
            folder=self.described.folder,
            hub_commit=self.described.hub_commit,
            load=self.job,
        )

    def answer(self, *, state: Literal["ready"] | None = None, refusal: Refusal | None = None) -> list[Effect]:
        """To all who wait, once."""
        asks, self.asks = self.asks, []
        replies = [ModelReply(ask=ask, model_id=self.model_id, state=state, refusal=refusal) for _, ask in asks]
        return [Send(sender, reply) for (sender, _), reply in zip(asks, replies, strict=True)]
