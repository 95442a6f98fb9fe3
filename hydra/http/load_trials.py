"""A load is over when the model's words have been read too: a model that could not answer is unloaded again.

Promises: a load that somebody waits for is refused then, and a job that goes on by itself fails, with the reason.
"""

from collections.abc import Iterable
from typing import Any

import attrs
import structlog
import trio

from hydra.actors.client import Cluster
from hydra.protocol.messages.models import JobStatus
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.text.cache import TokenizerCache, TokenizerFault

LOOK_EVERY_S = 1.0
JOBS_MAX = 64  # that are remembered

log = structlog.get_logger()


@attrs.define(eq=False)
class LoadTrials:
    """Of the loads that were asked for here."""

    cluster: Cluster
    tokenizers: TokenizerCache
    _open: dict[str, str] = attrs.field(factory=dict, init=False)  # job -> model id
    _refused: dict[str, Refusal] = attrs.field(factory=dict, init=False)  # job -> what its words were refused for

    async def prove(self, model_id: str) -> None:
        """Of a model that has just been loaded. Raises RefusalError, and the model is gone."""
        refusal = await self._refusal_of(model_id)
        if refusal is not None:
            await self._unload(model_id)
            raise RefusalError(refusal)

    def begin(self, job: str, model_id: str) -> None:
        """A load that nobody waits for."""
        self._open[job] = model_id
        _bound(self._open)

    async def run(self) -> None:
        """Until cancelled: judges what has begun, long before its weights are there."""
        while True:
            try:
                await self.judge()
            except RefusalError as error:
                log.debug("no verdict yet", code=error.refusal.code)
            await trio.sleep(LOOK_EVERY_S)

    async def judge(self) -> None:
        """Every open load whose model is known by now. Raises RefusalError when the cluster does not answer."""
        for job, model_id in list(self._open.items()):
            if all(card.model_id != model_id for card in await self.cluster.models()):
                continue  # its files have not been read yet, or it has failed
            refusal = await self._refusal_of(model_id)
            if self._open.pop(job, None) is not None and refusal is not None:
                self._refused[job] = refusal
                _bound(self._refused)
                await self._unload(model_id)

    async def verdicts(self, jobs: Iterable[JobStatus]) -> list[JobStatus]:
        """The jobs, none of them ready that may still be refused."""
        known_jobs = list(jobs)
        if any(job.state == "ready" and job.job in self._open for job in known_jobs):
            await self.judge()
        return [self._verdict(job) for job in known_jobs]

    def _verdict(self, job: JobStatus) -> JobStatus:
        if job.state not in ("loading", "ready"):
            self._open.pop(job.job, None)
        refusal = self._refused.get(job.job)
        return job if refusal is None else attrs.evolve(job, state="failed", refusal=refusal)

    async def _refusal_of(self, model_id: str) -> Refusal | None:
        cards = await self.cluster.models()
        for card in cards:
            if card.model_id == model_id:
                fault = await self.tokenizers.fault_of(card, cards)
                return None if fault is None else _with_fix(fault)
        return None  # somebody else has unloaded it by now

    async def _unload(self, model_id: str) -> None:
        await self.cluster.unload_model(model_id)
        self.tokenizers.keep(await self.cluster.models())


def _with_fix(fault: TokenizerFault) -> Refusal:
    return attrs.evolve(fault.refusal, message=f"{fault.refusal.message}; {fault.fix}")


def _bound(jobs: dict[str, Any]) -> None:
    while len(jobs) > JOBS_MAX:
        del jobs[next(iter(jobs))]  # the oldest
