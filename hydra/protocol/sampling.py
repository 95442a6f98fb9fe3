"""How the next token is chosen: parameters that travel with a row to the last stage.

Drawing is a pure function of (logits, parameters, seed, choice, position): no generator state lives anywhere, so a
replay draws the same token. Ranges are checked where a request enters (the HTTP room) and again when decoded.
"""

from collections.abc import Collection
from typing import Any

import attrs

TOP_P_MIN = 1e-6  # what a top_p of 0 is taken as: only the likeliest token


@attrs.frozen(kw_only=True)
class SamplingParams:
    """One row's sampling. The defaults are plain sampling at temperature 1; `temperature == 0` is greedy.

    Masks apply in this order: logit_bias and penalties, then min_tokens' ban of stop ids, then temperature,
    then top_k, top_p, min_p. `seed` is any 64-bit unsigned integer; `choice` separates the n answers of one request.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    choice: int = 0
    logprobs: int | None = None  # None: not asked for; 0..20: so many alternatives beside the chosen token
    min_tokens: int = 0  # stop_ids are banned before so many tokens were generated
    stop_ids: tuple[int, ...] = ()

    @property
    def needs_history(self) -> bool:
        """Whether the last stage must know the ids so far (penalties count them)."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def with_defaults(self, defaults: "DefaultSampling", given: Collection[str]) -> "SamplingParams":
        """The publisher's opinions in place of all that is not `given`, by name."""
        opinions = {name: value for name, value in defaults.opinions().items() if name not in given}
        return attrs.evolve(self, **opinions)


@attrs.frozen(kw_only=True)
class DefaultSampling:
    """What a model's publisher would have in place of each parameter that a request leaves out; None: no opinion.

    Its fields are some of SamplingParams', with the same names and ranges. A model published as greedy has no opinion
    on temperature and the masks.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # 0: off
    min_p: float | None = None
    repetition_penalty: float | None = None

    def opinions(self) -> dict[str, Any]:
        """By the names of SamplingParams."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


GREEDY = SamplingParams(temperature=0.0)
