"""A token that a model has chosen for one session, as everybody sees it who looks at one token at a time.

Promises: from the frontend's session to the response there is this one object per token, made once, where the columns
of a Tokens message are taken apart. Many tokens of one step stay columns as long as they travel together (StepResult,
Tokens). Refuses to know the text that the token stands for, and who reads it.
"""

from typing import Literal, TypeAlias

import attrs

from hydra.protocol.ids import Attempt

FinishReason: TypeAlias = Literal["stop", "length"]


@attrs.define(kw_only=True)  # not frozen: one is made for each token, see batch.py
class SampledToken:
    """`position` is its index in the session's history; `finish` says why it is the last one, if it is.

    With finish "stop" it is the stop id that was drawn, which is no part of the text. `logprob` is its own and `top`
    are the likeliest ids, best first, where the session's parameters ask for them.
    """

    attempt: Attempt
    position: int
    token: int
    finish: FinishReason | None = None
    cached_tokens: int = 0  # of the prompt, in blocks that an earlier row had filled
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
