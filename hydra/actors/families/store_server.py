"""The answering end of the store lane: takes questions off the wire, has them read aside, sends chunks back.

Runs wherever files are lent: in the coordinator, and in each worker. The event loop only passes frames on; disks are
waited for elsewhere, so that the command lane is never late because of a cold one. Between two questions nothing is
kept. At most READERS chunks are in memory on our side; what is not read yet waits in the asker's own queue, and what an
asker does not take is dropped and counted.
"""

import hmac
from typing import NoReturn

import attrs
import structlog
import trio

from hydra.actors.core.ports import Lender, RunBlocking
from hydra.protocol import store_lane
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.messages.models import Sample
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.protocol.store_lane import ChunkAnswer, ChunkRefused, ChunkReply, ChunkRequest
from hydra.protocol.wires.wire import Delivery, PeerGone, StoreHub, WireFull

log = structlog.get_logger()

READERS = 2  # one waits for the disk while the other's bytes are sent
READ_LEASE_S = 10.0  # a disk that takes longer for a chunk is as good as gone


@attrs.define(eq=False)
class StoreServer:
    """`auth` is the cluster's join token: whoever does not show it learns nothing, not even what is held."""

    hub: StoreHub
    lender: Lender
    run_blocking: RunBlocking  # abandons what is cancelled: a read that hangs must not hold the process
    auth: str = ""
    sent_bytes: int = attrs.field(default=0, init=False)
    refused: int = attrs.field(default=0, init=False)
    dropped: int = attrs.field(default=0, init=False)  # answers that found nobody, or a full queue
    malformed: int = attrs.field(default=0, init=False)

    async def run(self) -> NoReturn:
        """Until cancelled."""
        passing, taking = trio.open_memory_channel[Delivery](0)
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._answer_all, taking)
            while True:
                for delivery in await self.hub.receive():
                    await passing.send(delivery)  # what nobody is free to read stays in the askers' queues

    def samples(self) -> tuple[Sample, ...]:
        """What this end has counted, as metrics."""
        counted = (
            ("hydra_store_bytes_total", "Bytes of models' files handed out on the store lane.", self.sent_bytes),
            ("hydra_store_refusals_total", "Questions on the store lane that were refused.", self.refused),
            ("hydra_store_dropped_total", "Answers on the store lane that nobody took.", self.dropped),
            ("hydra_store_malformed_total", "Messages refused at the door of the store lane.", self.malformed),
        )
        return tuple(Sample(name=name, kind="counter", help=text, value=value) for name, text, value in counted)

    async def _answer_all(self, taking: trio.MemoryReceiveChannel[Delivery]) -> None:
        async for delivery in taking:
            try:
                ask = store_lane.decode_ask(delivery.frames)
            except TheyBrokeTheRules as error:
                self.malformed += 1
                log.warning("malformed message on the store lane", why=str(error))
                continue
            self._send(delivery, await self._answer(ask))

    async def _answer(self, ask: ChunkRequest) -> ChunkAnswer:
        if not hmac.compare_digest(ask.auth.encode(), self.auth.encode()):
            return self._no(ask, Refusal(code="unauthorized", message="the cluster's join token was not shown"))
        with trio.move_on_after(READ_LEASE_S):
            try:
                lent = await self.run_blocking(self.lender.read, ask.fingerprint, ask.file, ask.offset, ask.length)
            except RefusalError as error:
                return self._no(ask, error.refusal)
            except OSError as error:  # a disk that fails fails this one question
                message = f"{ask.file} cannot be read here: {error.strerror}"
                return self._no(ask, Refusal(code="bad_model", message=message))
            return ChunkReply(number=ask.number, file_bytes=lent.file_bytes, data=lent.data)
        message = f"{ask.file} was not read within {READ_LEASE_S:.0f} s; the disk is slow or gone"
        return self._no(ask, Refusal(code="timeout", message=message, retry_after_s=READ_LEASE_S))

    def _no(self, ask: ChunkRequest, refusal: Refusal) -> ChunkRefused:
        self.refused += 1
        return ChunkRefused(number=ask.number, refusal=refusal)

    def _send(self, delivery: Delivery, answer: ChunkAnswer) -> None:
        try:
            self.hub.send_nowait(delivery.peer, store_lane.encode_answer(answer))
        except (PeerGone, WireFull):
            self.dropped += 1
            return
        if isinstance(answer, ChunkReply):
            self.sent_bytes += len(answer.data)
