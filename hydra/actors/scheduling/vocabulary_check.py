"""Whether all ids of an opening, or of a result, are of the model's vocabulary. Pure; the Broker asks.

An id beyond it would index a matrix outside its rows, in a worker or in a frontend. Refuses to know which ids there
are: the vocabulary is a number.
"""

from hydra.protocol.batch import LOGPROBS_COLUMNS, RESULT_COLUMNS, StepResult
from hydra.protocol.columns import Bound, highest
from hydra.protocol.messages.generations import Open
from hydra.protocol.refusal import Refusal


def beyond_vocabulary(opening: Open, vocab: int) -> Refusal | None:
    """Names the parameter that has the id, and the id."""
    ids = {
        "prompt": highest(opening.history),
        "stop_token_ids": max((*opening.stop_ids, *opening.params.stop_ids), default=0),
        "logit_bias": max((token for token, _ in opening.params.logit_bias), default=0),
    }
    for param, token in ids.items():
        if token >= vocab:
            message = f"token id {token} is beyond the model's vocabulary: its ids are 0 to {vocab - 1}"
            return Refusal(code="invalid_value", message=message, param=param)
    return None


def of_the_vocabulary(result: StepResult, vocab: int) -> bool:
    """Its tokens, and as many log-probabilities as tokens with alternatives that exist; -1 stands for none."""
    bounds: dict[Bound, int] = {"vocabulary": vocab}
    if RESULT_COLUMNS.beyond(result, bounds):
        return False
    logprobs = result.logprobs
    if logprobs is None:
        return True
    return len(logprobs.chosen) == len(result.row) and not LOGPROBS_COLUMNS.beyond(logprobs, bounds)
