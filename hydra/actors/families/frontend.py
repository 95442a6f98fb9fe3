"""A frontend's family: its membership, its sessions, and the client that the HTTP room talks to.

`Frontend` satisfies `client.Cluster`. Tokens that arrive while a reader is busy are handed over together; a reader
that leaves closes its session. Every wait has a deadline.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
import trio

from hydra.actors.client import GenerateRequest, TokenStream
from hydra.actors.core.facts import Joined, Left
from hydra.actors.core.histogram import Histogram
from hydra.actors.core.host import ActorHost
from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Effect, Event, Received
from hydra.actors.core.names import ASKS, BROKER, JOURNAL, PLANNER, SESSIONS, STATUS
from hydra.actors.families.member_host import MemberHost
from hydra.actors.sessions.session import Fail
from hydra.actors.sessions.sessions import EndGeneration, Sessions, Show, StartGeneration
from hydra.protocol.ids import Address, AskId, RouteId, SessionId
from hydra.protocol.messages import Message
from hydra.protocol.messages.journal import JournalReply, JournalRequest
from hydra.protocol.messages.models import (
    CancelJob,
    JobsReply,
    JobsRequest,
    JobStatus,
    LoadModel,
    ModelReply,
    ModelsChanged,
    ReadyReply,
    ReadyRequest,
    Rebalance,
    StatusReply,
    StatusRequest,
    UnloadModel,
)
from hydra.protocol.model.model_spec import ModelCard, Quantize
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.protocol.sampled_token import SampledToken
from hydra.protocol.wires.wire import Spoke

ANSWER_S = 15.0
LOAD_ANSWER_S = 3600.0
GENERATION_SILENCE_MAX_S = 600.0  # a generation that hears nothing for so long is over, whatever the reason
SLOT_LOOK_EVERY_S = 10.0

A = TypeVar("A", ModelReply, StatusReply, ReadyReply)


@attrs.frozen(kw_only=True)
class FrontendParts:
    """The world, as a frontend needs it."""

    identity: Identity
    spoke: Spoke
    max_replays: int = 5


@attrs.define(eq=False)
class _Slot:
    """What one generation has to show and its reader has not taken yet: bounded by the request's max_tokens."""

    shown: list[SampledToken | Fail] = attrs.field(factory=list)
    news: trio.Event = attrs.field(factory=trio.Event)
    quiet_looks: int = 0  # of `look`, since something was put
    began_s: float | None = attrs.field(factory=trio.current_time)  # None: its first token came

    def put(self, shown: SampledToken | Fail) -> None:
        self.shown.append(shown)
        self.quiet_looks = 0
        self.news.set()

    def look(self) -> None:
        """Once every SLOT_LOOK_EVERY_S: a deadline for every token would cost more than the token."""
        self.quiet_looks += 1
        if self.quiet_looks * SLOT_LOOK_EVERY_S > GENERATION_SILENCE_MAX_S:
            self.put(
                Fail(Refusal(code="timeout", message=f"the cluster said nothing for {GENERATION_SILENCE_MAX_S:.0f} s"))
            )

    async def take(self) -> list[SampledToken | Fail]:
        """Everything there is, at least one. After a silence it is a failure."""
        await self.news.wait()
        self.news = trio.Event()
        shown, self.shown = self.shown, []
        return shown


@attrs.define(eq=False)
class _Reading:
    """One generation, as its reader iterates over it."""

    slot: _Slot
    ended: bool = False
    failure: Refusal | None = None  # told behind the tokens that came with it

    def __aiter__(self) -> "_Reading":
        return self

    async def __anext__(self) -> tuple[SampledToken, ...]:
        if self.ended:
            raise StopAsyncIteration
        if self.failure is None:
            shown = await self.slot.take()
            self.failure = next((item.refusal for item in shown if isinstance(item, Fail)), None)
            tokens = tuple(item for item in shown if isinstance(item, SampledToken))
            if tokens:
                self.ended = tokens[-1].finish is not None
                return tokens
        self.ended = True
        assert self.failure is not None
        raise RefusalError(self.failure)


@attrs.define(eq=False)
class _Asks:
    """Questions under way, and the models as last told. A machine without decisions: answers meet their askers."""

    models: tuple[ModelCard, ...] = ()
    joined: trio.Event = attrs.field(factory=trio.Event)
    informed: trio.Event = attrs.field(factory=trio.Event)  # of the models, once
    _answers: dict[AskId, tuple[trio.Event, list[Any]]] = attrs.field(factory=dict, init=False)
    _next: int = attrs.field(default=1, init=False)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Received(message=ModelsChanged(models=models)):
                self.models = models
                self.informed.set()
            case Received(
                message=(ModelReply() | JobsReply() | StatusReply() | ReadyReply() | JournalReply()) as reply
            ):
                waiting = self._answers.pop(reply.ask, None)
                if waiting is not None:
                    waiting[1].append(reply)
                    waiting[0].set()
            case Joined():
                self.joined.set()
            case Left():
                self.joined = trio.Event()
            case _:
                raise AssertionError(f"nobody asked for {event!r}")
        return []

    def check(self) -> None:
        """Each question has a number that was given, and no answer before it is read. Raises AssertionError."""
        assert all(number < self._next for number in self._answers), "a question that was never asked"
        assert all(news.is_set() or not answer for news, answer in self._answers.values()), "an answer nobody hears of"

    async def ask(self, put: Callable[[AskId], None], deadline_s: float, what: str) -> Any:
        number = AskId(self._next)
        self._next += 1
        answer: list[Any] = []
        with trio.move_on_after(deadline_s):
            await self.joined.wait()
            news = trio.Event()
            self._answers[number] = (news, answer)
            try:
                put(number)
                await news.wait()
            finally:
                self._answers.pop(number, None)
        if not answer:
            raise refuse("no_workers", f"the coordinator did not answer ({what}) in time", retry_after_s=2.0)
        return answer[0]


@attrs.define(eq=False)
class Frontend:
    """Builds the host of a frontend, and is the cluster for the HTTP room."""

    parts: FrontendParts
    membership: MemberHost = attrs.field(init=False)
    actor_host: ActorHost = attrs.field(init=False)
    sessions: Sessions = attrs.field(init=False)
    _asks: _Asks = attrs.field(factory=_Asks, init=False)
    _slots: dict[SessionId, _Slot] = attrs.field(factory=dict, init=False)
    _next_session: int = attrs.field(default=1, init=False)
    _first_tokens: Histogram = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.membership = MemberHost(self.parts.spoke, self.parts.identity, (ASKS, SESSIONS))
        self.actor_host = self.membership.actor_host
        self.sessions = Sessions(self.parts.max_replays)
        text = "From a request's opening to its first token, in this frontend."
        self._first_tokens = Histogram("hydra_time_to_first_token_seconds", text)
        self.actor_host.add(SESSIONS, self.sessions, self._perform)
        self.actor_host.add(ASKS, self._asks, self._perform)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_silences)
            self.membership.start(nursery)
            task_status.started()

    # ------------------------------------------------------------ client.Cluster

    async def models(self) -> tuple[ModelCard, ...]:
        with trio.move_on_after(ANSWER_S):
            await self._asks.informed.wait()
            return self._asks.models
        raise refuse("loading", "the coordinator has not told yet which models there are", retry_after_s=2.0)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[TokenStream]:
        session = SessionId(self._next_session)
        self._next_session += 1
        slot = self._slots[session] = _Slot()
        try:
            self.actor_host.post(SESSIONS, StartGeneration(session, request))
            yield _Reading(slot)
        finally:
            self.actor_host.post(SESSIONS, EndGeneration(session))
            del self._slots[session]

    async def status(self) -> StatusReply:
        reply = await self._asks.ask(
            lambda ask: self._say(STATUS, StatusRequest(ask=ask)), ANSWER_S, "the state of the cluster"
        )
        assert isinstance(reply, StatusReply)
        first_tokens = self._first_tokens.sample(("frontend", self.parts.identity.node_id))
        return attrs.evolve(reply, samples=(*reply.samples, first_tokens))

    async def ready(self, models: Sequence[str] = ()) -> ReadyReply:
        reply = await self._asks.ask(
            lambda ask: self._say(BROKER, ReadyRequest(ask=ask, models=tuple(models))), ANSWER_S, "readiness"
        )
        assert isinstance(reply, ReadyReply)
        return reply

    async def load_model(
        self,
        *,
        model_path: str,
        model_id: str | None,
        total_layers: int | None,
        dtype: str | None,
        wait: bool,
        replicas: int = 1,
        quantize: Quantize = "none",
    ) -> ModelReply:
        def put(ask: AskId) -> None:
            desired = LoadModel(
                ask=ask,
                model_path=model_path,
                model_id=model_id,
                total_layers=total_layers,
                dtype=dtype,
                wait=wait,
                replicas=replicas,
                quantize=quantize,
            )
            self._say(PLANNER, desired)

        return await self._ask_planner(put, LOAD_ANSWER_S if wait else ANSWER_S, "loading")

    async def unload_model(self, model_id: str) -> ModelReply:
        return await self._ask_planner(
            lambda ask: self._say(PLANNER, UnloadModel(ask=ask, model_id=model_id)), ANSWER_S, "unloading"
        )

    async def rebalance(self) -> ModelReply:
        return await self._ask_planner(lambda ask: self._say(PLANNER, Rebalance(ask=ask)), ANSWER_S, "rebalancing")

    async def journal(
        self, after: int = 0, *, session: str = "", node: str = "", route: int | None = None
    ) -> JournalReply:
        wanted = None if route is None else RouteId(route)

        def put(ask: AskId) -> None:
            self._say(JOURNAL, JournalRequest(ask=ask, after=after, session=session, node=node, route=wanted))

        reply = await self._asks.ask(put, ANSWER_S, "the journal")
        assert isinstance(reply, JournalReply)
        return reply

    async def jobs(self, job: str | None) -> tuple[JobStatus, ...]:
        return await self._ask_jobs(lambda ask: self._say(PLANNER, JobsRequest(ask=ask, job=job)), "a load job")

    async def cancel_job(self, job: str) -> tuple[JobStatus, ...]:
        return await self._ask_jobs(lambda ask: self._say(PLANNER, CancelJob(ask=ask, job=job)), "calling a job off")

    # ------------------------------------------------------------ inside

    async def _watch_silences(self) -> None:
        while True:
            await trio.sleep(SLOT_LOOK_EVERY_S)
            for slot in self._slots.values():
                slot.look()

    async def _ask_jobs(self, put: Callable[[AskId], None], what: str) -> tuple[JobStatus, ...]:
        reply = await self._asks.ask(put, ANSWER_S, what)
        assert isinstance(reply, JobsReply)
        if reply.refusal is not None:
            raise RefusalError(reply.refusal)
        return reply.jobs

    async def _ask_planner(self, put: Callable[[AskId], None], deadline_s: float, what: str) -> ModelReply:
        reply = await self._asks.ask(put, deadline_s, what)
        assert isinstance(reply, ModelReply)
        return reply

    def _say(self, to: Address, message: Message) -> None:
        """Raises RefusalError when the message is beyond what the command lane carries."""
        undelivered = self.membership.gateway.carry(to, ASKS, message)
        if undelivered is not None:
            raise RefusalError(undelivered.refusal)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Show(session=session, shown=shown):
                slot = self._slots.get(session)
                if slot is not None:
                    if slot.began_s is not None and isinstance(shown, SampledToken):
                        self._first_tokens.observe(trio.current_time() - slot.began_s)
                        slot.began_s = None
                    slot.put(shown)
            case _:
                raise AssertionError(f"a frontend cannot do {effect!r}")
