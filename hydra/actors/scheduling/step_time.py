"""How long a step of one route should take, as far as the steps that came back tell. Knows no rows and no clock."""

import attrs

FIXED_TOKENS = 16  # what a prefill costs that has next to no tokens, in tokens: a short one says little of a long one
FIRST_TOKEN_STEPS = (
    0.5  # what a token of a first prefill is taken to cost, in steps: codes of 4 bits cost about as much
)
_KEPT = 0.8  # of what was known, with each new measurement


@attrs.define
class StepTime:
    """A prediction is rather too long: short prefills are taken to be as dear by the token as they may be."""

    _step_s: float = attrs.field(default=0.0, init=False)  # of a step of one token for each row, door to door
    _prefill_s: float = attrs.field(default=0.0, init=False)  # of the prefills of late, the latest weighing most
    _prefill_tokens: float = attrs.field(default=0.0, init=False)  # of the same, with FIXED_TOKENS more for each

    def measure(self, took_s: float, tokens: int, rows: int) -> None:
        """A step of so many tokens for so many rows came back."""
        if tokens <= rows:
            self._step_s = took_s if self._step_s == 0.0 else _KEPT * self._step_s + (1.0 - _KEPT) * took_s
            return
        self._step_s = self._step_s or took_s
        self._prefill_s = _KEPT * self._prefill_s + took_s
        self._prefill_tokens = _KEPT * self._prefill_tokens + tokens + FIXED_TOKENS

    def predicted_s(self, tokens: int) -> float | None:
        """None: nothing was measured yet."""
        if self._step_s == 0.0:
            return None
        token_s = FIRST_TOKEN_STEPS * self._step_s
        if self._prefill_tokens:
            token_s = self._prefill_s / self._prefill_tokens
        elif tokens == 1:
            token_s = 0.0
        return self._step_s + token_s * tokens
