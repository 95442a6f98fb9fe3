"""All served models of a coordinator: who asked for them, their load jobs, and who hears of them.

A model is added when it is wanted and gone when it is unloaded or cannot be served. Nothing here plans.
"""

from collections.abc import Iterator
from typing import Literal

import attrs

from hydra.actors.core.facts import ModelGone, ModelKnown
from hydra.actors.core.machine import Effect, Send, Tell
from hydra.actors.core.names import ASKS, BROKER_NAME
from hydra.actors.planning import stage_orders
from hydra.actors.planning.deployment import Deployment
from hydra.actors.planning.desired_model import Describe, DesiredModel, SaveState
from hydra.actors.planning.load_jobs import Jobs, node_loads
from hydra.actors.planning.presence import Presence
from hydra.actors.planning.served_model import ServedModel
from hydra.protocol.ids import Address, AskId, Epoch, PeerId
from hydra.protocol.messages.models import JobsReply, ModelReply, ModelsChanged
from hydra.protocol.model.model_name import default_model_id
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError

ReplyState = Literal["loading", "unloaded", "rebalancing", "unchanged"]


def model_reply(
    to: Address,
    ask: AskId,
    *,
    model_id: str | None = None,
    state: ReplyState | None = None,
    refusal: Refusal | None = None,
    job: str | None = None,
) -> list[Effect]:
    return [Send(to, ModelReply(ask=ask, model_id=model_id, state=state, refusal=refusal, job=job))]


@attrs.define(eq=False)
class ServedModels:
    """By model id, in the order in which they were wanted. `epochs` counts those begun or ended under this `term`."""

    term: int
    max_model_len: int
    wall_s: int
    presence: Presence
    epochs: int = attrs.field(default=0, init=False)
    jobs: Jobs = attrs.field(factory=Jobs, init=False)
    _models: dict[str, ServedModel] = attrs.field(factory=dict, init=False)
    _frontends: list[PeerId] = attrs.field(factory=list, init=False)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(list(self._models.values()))

    def get(self, model_id: str) -> ServedModel | None:
        return self._models.get(model_id)

    def next_epoch(self) -> Epoch:
        self.epochs += 1
        return Epoch(self.term, self.epochs)

    # ------------------------------------------------------------ wanted, and gone

    def want(self, desired: DesiredModel, asker: tuple[Address, AskId] | None) -> tuple[ServedModel, list[Effect]]:
        model_id = desired.model_id or default_model_id(desired.model_path)
        job = self.jobs.begin(self.term, model_id, desired.model_path)
        model = ServedModel(desired, model_id, job, created_s=self.wall_s)
        if asker is not None:
            model.asks.append(asker)
        self._models[model_id] = model
        known = ModelKnown(model_id=model_id, max_model_len=0)  # so that sessions of a former life may wait already
        return model, [Tell(BROKER_NAME, known), Describe(desired.place)]

    def fail(self, model: ServedModel, refusal: Refusal) -> list[Effect]:
        """It cannot be served: who asked for it is told, and nothing of it stays."""
        first = next((d.route for d in model.deployments if d.route is not None), None)
        self.jobs.end(model.job, refusal, first)
        gone = ModelGone(model_id=model.model_id, refusal=refusal, forget=True)
        effects: list[Effect] = [Tell(BROKER_NAME, gone)]
        for deployment in model.deployments:
            effects += self.drop(deployment)
        effects += model.answer(refusal=refusal)
        del self._models[model.model_id]
        return [*effects, self.save(), *self.announce()]

    def drop(self, deployment: Deployment) -> list[Effect]:
        """What is left of its stages is freed."""
        if deployment.route is None:
            return []
        nodes = self.presence.nodes
        there = [stage.node for stage in deployment.stages if nodes.get(stage.share.node) is stage.node]
        deployment.route = None
        return stage_orders.drop(deployment.route_id, self.next_epoch(), there)

    # ------------------------------------------------------------ who hears of them

    def cards(self) -> tuple[ModelCard, ...]:
        """The models as frontends see them; only those whose files were understood."""
        cards = (model.card(self.max_model_len) for model in self)
        return tuple(card for card in cards if card is not None)

    def save(self) -> SaveState:
        nodes = dict.fromkeys(name for model in self for d in model.deployments for name in d.nodes())
        return SaveState(self.term, tuple(model.desired for model in self), tuple(nodes))

    def frontend_joined(self, peer: PeerId) -> list[Effect]:
        self._frontends.append(peer)
        return self._tell([peer])

    def frontend_lost(self, peer: PeerId) -> None:
        self._frontends = [other for other in self._frontends if other != peer]

    def announce(self) -> list[Effect]:
        return self._tell(self._frontends)

    def _tell(self, peers: list[PeerId]) -> list[Effect]:
        """Not while a model of a former life is still being read: it would seem to be gone."""
        if any(model.kept and model.describing for model in self):
            return []
        return [Send(Address(peer, ASKS), ModelsChanged(models=self.cards())) for peer in peers]

    def tell_jobs(self, sender: Address, ask: AskId, job: str | None) -> list[Effect]:
        """Of a load under way: how far each node of each of its routes has come."""
        loads = {model.job: tuple(n for d in model.deployments for n in node_loads(d.route)) for model in self}
        try:
            jobs = self.jobs.entries(job)
        except RefusalError as error:
            return [Send(sender, JobsReply(ask=ask, refusal=error.refusal))]
        shown = tuple(
            attrs.evolve(one, nodes=loads.get(one.job, ())) if one.state == "loading" else one for one in jobs
        )
        return [Send(sender, JobsReply(ask=ask, jobs=shown))]
