"""A refusal: an expected "no" that travels as a message. It is neither a fault nor a bug.

Codes are a closed list; the HTTP room owns the table from code to status. A message says what, cause and fix.
"""

from typing import Literal

import attrs

RefusalCode = Literal[
    "invalid_json",  # a body that is no JSON object: 400
    "invalid_value",  # a parameter cannot be honoured: 400
    "context_length_exceeded",  # prompt + answer do not fit the context: 400
    "model_not_found",  # no such model is loaded, or no such directory: 404
    "does_not_fit",  # the plan needs more memory than there is: 503, exit 3
    "queue_full",  # too many are waiting: 429
    "no_workers",  # nobody to compute: 503
    "loading",  # the model is on its way: 503
    "recovery_deadline",  # the route did not come back in time: 503
    "replay_limit",  # this request was in flight at too many deaths: 500
    "not_finite",  # the model's logits for this request are NaN or infinity: 500
    "bad_model",  # a model directory that lies or is broken: 400
    "unsupported",  # known, and refused by name: 400
    "unauthorized",  # join token or key: 401
    "unreachable",  # a worker that gives an address at which nobody else reaches it
    "version_mismatch",  # the peer speaks another protocol version
    "access_denied",  # a gated or private model, without a token that may read it: 403, exit 6
    "source_unreachable",  # neither the Hub nor a peer hands out what is missing, or offline without it: 503, exit 4
    "job_not_found",  # no load job of this name: 404
    "cancelled",  # somebody called the job off: 409
    "shutting_down",  # draining: 503
    "timeout",  # a deadline passed: 408
    "internal_error",  # a bug on our side: 500
]


MESSAGE_LENGTH_MAX = 10_000  # characters; what is refused may be of any length, and its refusal has to arrive


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_LENGTH_MAX else f"{message[: MESSAGE_LENGTH_MAX - 1]}…"


@attrs.frozen(kw_only=True)
class Refusal:
    """Why something is not done. `param` names the offending request field; `retry_after_s` when waiting helps."""

    code: RefusalCode
    message: str = attrs.field(converter=_short)
    param: str | None = None
    retry_after_s: float | None = None


class RefusalError(Exception):
    """A refusal on its way up a call stack, until somebody turns it into a message or a status."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refuse(
    code: RefusalCode, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> RefusalError:
    """`raise refuse("bad_model", "...")`: the short way to say no inside one process."""
    return RefusalError(Refusal(code=code, message=message, param=param, retry_after_s=retry_after_s))
