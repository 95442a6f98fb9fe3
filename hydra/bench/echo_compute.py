"""Arithmetic that is none: for measuring what is around it, and for stages that take a known time."""

import time
from typing import Any

import attrs

from hydra.protocol.batch import Outcome, Run, int32
from hydra.protocol.blob import Blob
from hydra.protocol.ids import RouteId
from hydra.protocol.messages.membership import DeviceOffer, Held
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.progress import Progress

ECHO_MEMORY_BYTES = 64_000_000_000
KV_BLOCKS = 4096


@attrs.define
class EchoCompute:
    """Implements Compute: sleeps `step_s` per run, and answers with `hidden_bytes` of nothing, or with tokens."""

    hidden_bytes: int
    step_s: float = 0.0
    _last: bool = False
    _hidden: Blob = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._hidden = Blob("float32", (1, self.hidden_bytes // 4), bytes(self.hidden_bytes))

    def offer(self) -> DeviceOffer:
        return DeviceOffer(
            device="cpu",
            name="echo",
            dtypes=("float32",),
            memory_total_bytes=ECHO_MEMORY_BYTES,
            memory_free_bytes=ECHO_MEMORY_BYTES,
        )

    def held(self) -> tuple[Held, ...]:
        return ()

    def still_to_read(self, order: LoadSlice) -> LoadSlice | None:
        return None

    def load(self, order: LoadSlice, progress: Progress) -> SliceFacts:
        self._last = order.end_layer == order.spec.n_layers
        return SliceFacts(weight_bytes=0, read_bytes=0, kv_blocks_max=KV_BLOCKS, load_s=0.0)

    def activate(self, route: RouteId, kv_blocks: int) -> None:
        """There is nothing to make."""

    def drop(self, route: RouteId) -> None:
        """There is nothing to free."""

    def free_pool(self, route: RouteId) -> None:
        """There is nothing to free."""

    def launch(self, run: Run) -> Any:
        if self.step_s:
            time.sleep(self.step_s)
        if self._last:
            return Outcome(token=int32([7] * int(run.batch.sample.sum())))
        n_tokens = run.batch.n_tokens
        if n_tokens == 1:
            return Outcome(hidden=self._hidden)
        return Outcome(hidden=Blob("float32", (n_tokens, self.hidden_bytes // 4), bytes(self.hidden_bytes * n_tokens)))

    def collect(self, ticket: Any) -> Outcome:
        assert isinstance(ticket, Outcome)
        return ticket
