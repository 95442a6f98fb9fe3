"""One generation between a frontend's Session and the Broker."""

from collections.abc import Iterator
from typing import Literal

import attrs
import numpy as np

from hydra.protocol.batch import Int32Column, Logprobs, int32, token_ids_field
from hydra.protocol.ids import Attempt, SessionId
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampled_token import FinishReason, SampledToken
from hydra.protocol.sampling import SamplingParams


def _ids() -> Int32Column:
    return attrs.field(eq=attrs.cmp_using(eq=np.array_equal), converter=int32)


@attrs.frozen(kw_only=True)
class Open:
    """Session -> Broker. Serve me from `history` on: the prompt, plus what I have already shown (a replay).

    `max_tokens` counts generated tokens over all attempts; `deaths` counts stage deaths this session was in flight
    at. A replayed session is never refused for capacity. Rows are shared between owners and their requests.
    """

    session: SessionId
    attempt: Attempt
    model_id: str
    history: Int32Column = token_ids_field()
    prompt_tokens: int
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    deaths: int = 0
    request: int = 0  # all answers of one request of this frontend have one number; 0: it stands for itself
    owner: str = ""  # a digest of the API key that was presented, never the key; empty: none was


@attrs.frozen(kw_only=True)
class OpenRefused:
    """Broker -> Session. The end of this session."""

    session: SessionId
    attempt: Attempt
    refusal: Refusal


@attrs.frozen(kw_only=True)
class Reopen:
    """Broker -> Session. Your row is gone; send Open with attempt + 1. `death`: it was in flight when a stage died."""

    session: SessionId
    attempt: Attempt
    why: Literal["epoch", "preempted", "coordinator"]
    death: bool = False


FINISHES: tuple[FinishReason | None, ...] = (None, "stop", "length")  # by its code in a column
OWNER_LENGTH_MAX = 64  # characters


@attrs.frozen(kw_only=True)
class Tokens:
    """Broker -> one frontend: the tokens of one step, in columns. `finish` is an index into FINISHES.

    `position[i]` is the token's index in its session's history; `cached[i]` how many prompt tokens came from the
    prefix cache.
    """

    session: Int32Column = _ids()
    attempt: Int32Column = _ids()
    position: Int32Column = _ids()
    token: Int32Column = _ids()
    finish: Int32Column = _ids()
    cached: Int32Column = _ids()
    logprobs: Logprobs | None = None  # rows as in the columns

    def one_by_one(self) -> Iterator[tuple[SessionId, SampledToken]]:
        """The columns taken apart."""
        columns = (self.session, self.attempt, self.position, self.token, self.finish, self.cached)
        for index, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            session, attempt, position, token, finish, cached = values
            sampled = SampledToken(
                attempt=attempt, position=position, token=token, finish=FINISHES[finish], cached_tokens=cached
            )
            if self.logprobs is not None:
                sampled.logprob, sampled.top = self.logprobs.of(index)
            yield session, sampled


@attrs.frozen(kw_only=True)
class Close:
    """Session -> Broker. Stop string, or the client left: free the row."""

    session: SessionId
    attempt: Attempt
