"""What a step may say on one stage: ids of the vocabulary, blocks of the pool, hidden states of the right kind.

Asked before a step changes or computes anything, so that one that lies costs a look at its columns and no process. The
wire form (columns that agree, no negative number) was checked before; whether a step is stale or in sequence is the
StageLine's. Knows no tensor.
"""

from collections.abc import Iterable

import attrs

from hydra.protocol.batch import BATCH_COLUMNS, RowOpening, Step
from hydra.protocol.columns import Bound, highest
from hydra.protocol.messages.plans import Activate, LoadSlice
from hydra.protocol.model.dtype import Dtype


@attrs.frozen(kw_only=True)
class StepLimits:
    """Of one route in one epoch on this stage."""

    vocab: int
    kv_blocks: int
    block_size: int
    hidden: int  # width of the hidden states
    dtype: Dtype
    first: bool  # of the route's stages: it is sent ids, and no hidden states

    def fault(self, step: Step) -> str:
        """What is wrong with it; empty: nothing is."""
        batch = step.batch
        bounds: dict[Bound, int] = {
            "vocabulary": self.vocab,
            "pool's blocks": self.kv_blocks,
            "pool's positions": self.kv_blocks * self.block_size,
        }
        if fault := BATCH_COLUMNS.beyond(batch, bounds):
            return fault
        if len(set(batch.row.tolist())) != batch.n_rows:
            return "a row twice"
        if not self._hidden_fits(step):
            return "hidden states of another kind"
        return next((fault for opening in batch.opened if (fault := self._opening_fault(opening))), "")

    def room(self, n_blocks: int, end: int) -> bool:
        """Whether a row with so many blocks has room for positions up to `end`."""
        return n_blocks * self.block_size >= end

    def _hidden_fits(self, step: Step) -> bool:
        hidden = step.hidden
        if hidden is None:
            return self.first or step.out_of_memory or not step.batch.n_rows
        return not self.first and hidden.dtype == self.dtype and hidden.shape[1:] == (self.hidden,)

    def _opening_fault(self, opening: RowOpening) -> str:
        params = opening.params
        biased = (token for token, _ in params.logit_bias)
        if not self._known(params.stop_ids) or not self._known(biased) or highest(opening.history) >= self.vocab:
            return "an opening with ids beyond the vocabulary"
        if params.needs_history and len(opening.history) < max(opening.cached_tokens, opening.prompt_tokens):
            return "an opening without the history that its penalties count"
        return ""

    def _known(self, ids: Iterable[int]) -> bool:
        return all(token < self.vocab for token in ids)


def step_limits_of(order: LoadSlice, plan: Activate) -> StepLimits:
    """What an activated slice can take."""
    return StepLimits(
        vocab=order.spec.vocab,
        kv_blocks=plan.kv_blocks,
        block_size=order.block_size,
        hidden=order.spec.hidden,
        dtype=order.dtype,
        first=plan.stage_index == 0,
    )
