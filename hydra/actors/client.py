"""What the HTTP room sees of the cluster: ask for tokens, ask for facts. Words never get past this file.

A generation is an `async with`: leaving it, for whatever reason (done, stop string, client gone), closes the session
and frees its KV. Replays, re-plans and dead machines do not show here, except as a pause.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import attrs
import numpy as np

from hydra.protocol.batch import Int32Column, int32
from hydra.protocol.messages.journal import JournalReply
from hydra.protocol.messages.models import JobStatus, ModelReply, ReadyReply, StatusReply
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.sampling import SamplingParams


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """One answer to be generated (n answers are n requests with `params.choice` 0 .. n-1)."""

    model_id: str
    prompt_ids: Int32Column = attrs.field(eq=attrs.cmp_using(eq=np.array_equal), converter=int32)
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]  # generation ends when one is drawn: end-of-sequence ids and the request's own
    request: int = 0  # the answers to one HTTP request share its number, unique in this frontend; 0: it has no others
    owner: str = ""  # a digest of the API key that was presented; empty: none was
    response_id: str = ""  # the id in the answer that its reader gets, for the journal


@attrs.frozen(kw_only=True)
class TokenLogprobs:
    """Of one token: its own log-probability, and the best alternatives (token id, logprob), best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


@attrs.frozen(kw_only=True)
class Piece:
    """Tokens that have arrived, in order, at least one unless `finish` is set.

    With finish "stop" the last id is the stop id that was drawn (not part of the text).
    """

    token_ids: tuple[int, ...]
    finish: Literal["stop", "length"] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one per token when asked for
    cached_tokens: int = 0


class Generation(Protocol):
    """A running answer. Iteration ends after the piece with `finish`; it raises RefusalError when it cannot go on."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...


class Cluster(Protocol):
    """The cluster as the HTTP room sees it. Every wait inside has a deadline; RefusalError says why not."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models there are now, as last told by the coordinator; waits for the first time it tells."""

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[Generation]: ...

    async def status(self) -> StatusReply: ...

    async def ready(self, models: Sequence[str] = ()) -> ReadyReply:
        """Whether the route of one of these models is proven to work; of any, when none is named."""

    async def load_model(
        self, *, model_path: str, model_id: str | None, total_layers: int | None, dtype: str | None, wait: bool
    ) -> ModelReply: ...

    async def jobs(self, job: str | None) -> tuple[JobStatus, ...]:
        """One load job, or all that are remembered. Raises RefusalError job_not_found."""

    async def cancel_job(self, job: str) -> tuple[JobStatus, ...]:
        """The job as it is afterwards: cancelled, unless it had ended already. Raises RefusalError job_not_found."""

    async def unload_model(self, model_id: str) -> ModelReply: ...

    async def rebalance(self) -> ModelReply: ...

    async def journal(
        self, after: int = 0, *, session: str = "", node: str = "", route: int | None = None
    ) -> JournalReply:
        """The entries of the coordinator's journal with a higher id than `after`; the empty conditions are none."""
