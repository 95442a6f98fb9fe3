"""The tokens of one step for one frontend, as the columns of a Tokens message. Pure."""

from collections.abc import Mapping

import numpy as np

from hydra.actors.scheduling.row import Row
from hydra.protocol.batch import StepResult, int32
from hydra.protocol.messages.generations import FINISHES, Tokens


def tokens_of(sampled: Mapping[int, Row], result: StepResult) -> Tokens:
    """`sampled` are rows by their index in the result, which stays columns."""
    rows = sampled.values()
    index = np.array(list(sampled))
    return Tokens(
        session=int32([row.key.session for row in rows]),
        attempt=result.attempt[index],
        position=result.position[index],
        token=result.token[index],
        finish=int32([FINISHES.index(row.finish) for row in rows]),
        cached=int32([min(row.cached, row.open.prompt_tokens) for row in rows]),
        logprobs=None if result.logprobs is None else result.logprobs.rows(index),
    )
