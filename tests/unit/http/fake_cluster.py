"""A cluster for the HTTP room: says what a script says, when the test lets it, and knows who has left."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.journal import JournalFilter, JournalRing
from hydra.protocol.messages.journal import JournalReply
from hydra.protocol.messages.models import JobStatus, ModelReply, NodeLoad, ReadyReply, StatusReply
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.protocol.sampled_token import SampledToken

Script = Callable[[GenerateRequest, int], Any]  # (request, n-th time) -> tokens | RefusalError | seconds to wait


def tokens_of(ids: Sequence[int], finish: str | None = None, **of_each: Any) -> tuple[SampledToken, ...]:
    """Tokens that arrive together; the last one has the finish."""
    last = len(ids) - 1
    return tuple(
        SampledToken(attempt=0, position=n, token=token, finish=finish if n == last else None, **of_each)
        for n, token in enumerate(ids)
    )


def spell(text: str, finish: str = "stop", eos: int = 256) -> Script:
    """One byte of `text` per piece (the demo tokenizer's ids are bytes), then the end."""
    ids = list(text.encode())

    def script(request: GenerateRequest, number: int) -> tuple[SampledToken, ...]:
        logprobs = {}
        token = ids[number] if number < len(ids) else eos
        if request.params.logprobs is not None:
            top = tuple((token + i, -1.0 - i) for i in range(request.params.logprobs))
            logprobs = {"logprob": -0.5, "top": top}
        at_end = number == len(ids) if finish == "stop" else number == len(ids) - 1
        return tokens_of((token,), finish if at_end else None, **logprobs)

    return script


@attrs.define(eq=False)
class FakeCluster:
    """Satisfies hydra.actors.client.Cluster."""

    card: ModelCard
    script: Script
    requests: list[GenerateRequest] = attrs.field(factory=list)
    open: int = 0  # generations that nobody has closed
    pieces: int = 0
    gate: trio.Event | None = None  # holds everything after the first piece until it is set
    turn: Callable[[GenerateRequest, int], Awaitable[None]] | None = None  # awaited before the n-th piece
    is_ready: bool = True
    ready_asked: list[tuple[str, ...]] = attrs.field(factory=list)
    others: tuple[ModelCard, ...] = ()  # that are loaded too
    gone: bool = False  # the first model has been unloaded
    silent: bool = False  # the coordinator has not told yet which models there are
    unloaded: list[str] = attrs.field(factory=list)
    loaded: list[dict[str, Any]] = attrs.field(factory=list)  # as was asked for
    ring: JournalRing = attrs.field(factory=JournalRing)
    journal_fails: int = 0  # so many times nobody answers for it
    job: JobStatus = JobStatus(
        job="load-1-1",
        model_id="m",
        model_path="org/m",
        state="loading",
        nodes=(
            NodeLoad(node_id="w0", state="fetching", bytes_done=3, bytes_total=10),
            NodeLoad(node_id="w1", state="waiting", bytes_done=0, bytes_total=0),
        ),
    )

    async def journal(self, after=0, *, session="", node="", route=None) -> JournalReply:
        if self.journal_fails:
            self.journal_fails -= 1
            raise refuse("no_workers", "the coordinator did not answer")
        entries, more = self.ring.select(after, JournalFilter(session=session, node=node, route=route))
        return JournalReply(ask=1, entries=entries, oldest=self.ring.oldest, newest=self.ring.newest, more=more)

    async def models(self) -> tuple[ModelCard, ...]:
        if self.silent:
            raise refuse("loading", "nothing is known yet")
        return self.others if self.gone else (self.card, *self.others)

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.open += 1
        try:
            async with aclosing(self._pieces(request)) as pieces:
                yield pieces
        finally:
            self.open -= 1

    async def _pieces(self, request: GenerateRequest) -> AsyncIterator[tuple[SampledToken, ...]]:
        number = 0
        while True:
            if self.turn is not None:
                await self.turn(request, number)
            said = self.script(request, number)
            if isinstance(said, float | int):
                await trio.sleep(said)
                number += 1
                continue
            if isinstance(said, Refusal):
                raise RefusalError(said)
            if isinstance(said, Exception):
                raise said
            await trio.lowlevel.checkpoint()
            self.pieces += 1
            yield said
            if said[-1].finish is not None:
                return
            number += 1
            if self.gate is not None:
                await self.gate.wait()

    async def status(self) -> StatusReply:
        return StatusReply(ask=1, epoch=3, ready=True, nodes=(), processes=(), models=())

    async def ready(self, models: Sequence[str] = ()) -> ReadyReply:
        self.ready_asked.append(tuple(models))
        return ReadyReply(ask=1, ready=self.is_ready, why="" if self.is_ready else "asleep", retry_after_s=2.0)

    async def load_model(self, **desired: Any) -> ModelReply:
        self.loaded.append(desired)
        model_id = desired["model_id"] or "m"
        if desired["wait"]:
            return ModelReply(ask=1, model_id=model_id, state="ready")
        return ModelReply(ask=1, model_id=model_id, state="loading", job=self.job.job)

    async def jobs(self, job: str | None) -> tuple[JobStatus, ...]:
        if job not in (None, self.job.job):
            raise refuse("job_not_found", "no such job")
        return (self.job,)

    async def cancel_job(self, job: str) -> tuple[JobStatus, ...]:
        await self.jobs(job)
        self.job = attrs.evolve(self.job, state="cancelled", refusal=Refusal(code="cancelled", message="called off"))
        return (self.job,)

    async def unload_model(self, model_id: str) -> ModelReply:
        self.unloaded.append(model_id)
        self.gone = self.gone or model_id == self.card.model_id
        refusal = Refusal(code="model_not_found", message="no such model", param="model_id")
        return ModelReply(ask=1, refusal=refusal) if model_id != "m" else ModelReply(ask=1, state="unloaded")

    async def rebalance(self) -> ModelReply:
        return ModelReply(ask=1, state="rebalancing")
