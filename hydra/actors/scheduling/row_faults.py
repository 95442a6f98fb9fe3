"""What becomes of a row that a step went wrong for: it is opened again, or it ends with a reason. Never again for ever.

A row whose logits are not finite ends, and no other does. If it stood on blocks that another row had filled it is first
computed once without them: the fault may have been the other's. A row whose step found no memory is opened again, to be
computed in smaller steps; it ends when a step of one of its tokens alone has failed twice, or after many failures.

It remembers sessions by key until they are forgotten. It knows no blocks and sends nothing.
"""

from typing import Literal, TypeAlias

import attrs

from hydra.actors.scheduling.row import Row, RowKey
from hydra.protocol.refusal import Refusal

RowFault: TypeAlias = Literal["not finite", "no memory", "no memory alone"]

NOT_FINITE = Refusal(
    code="not_finite",
    message="the model's logits for this request are not finite (NaN or infinity), so there is no next token: its "
    "weights are damaged, or a value left the range of the dtype it runs in (float16 ends at 65504); load it with "
    "--dtype bfloat16 or float32, and if that changes nothing, fetch its files again",
)
NO_MEMORY = Refusal(
    code="does_not_fit",
    message="a worker's device had not enough free memory to compute this request, also in the smallest steps: free "
    "memory there, let the worker offer less of it (--memory-gb) or give less of it to KV blocks ([engine] "
    "kv_memory_fraction), or send a shorter prompt",
)
FAILURES_MAX = 20  # steps without memory that one session is replayed after, over all epochs; a bound halves in 10
ALONE_COUNTS = FAILURES_MAX // 2


@attrs.define(eq=False)
class RowFaults:
    """The memory of what went wrong for whom."""

    _unshared: set[RowKey] = attrs.field(factory=set, init=False)
    _failures: dict[RowKey, int] = attrs.field(factory=dict, init=False)

    def judge(self, row: Row, fault: RowFault) -> Refusal | None:
        """None: it is to be opened again."""
        if fault == "not finite":
            self._unshared.add(row.key)
            return None if row.cached else NOT_FINITE
        counts = ALONE_COUNTS if fault == "no memory alone" else 1
        self._failures[row.key] = self._failures.get(row.key, 0) + counts
        return NO_MEMORY if self._failures[row.key] >= FAILURES_MAX else None

    def may_share(self, key: RowKey) -> bool:
        """Whether it may begin with blocks that another row has filled."""
        return key not in self._unshared

    def forget(self, key: RowKey) -> None:
        self._unshared.discard(key)
        self._failures.pop(key, None)

    def check(self) -> None:
        """Whoever has failed too often is not remembered: it has ended. Raises AssertionError."""
        for key, failures in self._failures.items():
            assert 0 < failures < FAILURES_MAX, f"{key} goes on after {failures} failures"

    def __len__(self) -> int:
        """How many sessions it remembers."""
        return len(self._unshared | self._failures.keys())
