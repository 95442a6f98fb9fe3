"""What the HTTP room sees of the cluster: ask for tokens, ask for facts. Words never get past this file.

A generation is an `async with`: leaving it, for whatever reason (done, stop string, client gone), closes the session
and frees its KV. Replays, re-plans and dead machines do not show here, except as a pause.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs

from hydra.protocol.batch import Int32Column, token_ids_field
from hydra.protocol.messages.journal import JournalReply
from hydra.protocol.messages.models import JobStatus, ModelReply, ReadyReply, StatusReply
from hydra.protocol.model.model_spec import ModelCard, Quantize
from hydra.protocol.sampled_token import SampledToken
from hydra.protocol.sampling import SamplingParams


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """One answer to be generated (n answers are n requests with `params.choice` 0 .. n-1)."""

    model_id: str
    prompt: Int32Column = token_ids_field()
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]  # generation ends when one is drawn: end-of-sequence ids and the request's own
    request: int = 0  # the answers to one HTTP request share its number, unique in this frontend; 0: it has no others
    owner: str = ""  # a digest of the API key that was presented; empty: none was
    response_id: str = ""  # the id in the answer that its reader gets, for the journal


class TokenStream(Protocol):
    """A running answer: the tokens that have arrived, in order, at least one at a time.

    Iteration ends after the token with `finish`; it raises RefusalError when it cannot go on.
    """

    def __aiter__(self) -> AsyncIterator[tuple[SampledToken, ...]]: ...


class Cluster(Protocol):
    """The cluster as the HTTP room sees it. Every wait inside has a deadline; RefusalError says why not."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models there are now, as last told by the coordinator; waits for the first time it tells."""

    def generate(self, request: GenerateRequest) -> AbstractAsyncContextManager[TokenStream]: ...

    async def status(self) -> StatusReply: ...

    async def ready(self, models: Sequence[str] = ()) -> ReadyReply:
        """Whether the route of one of these models is proven to work; of any, when none is named."""

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
