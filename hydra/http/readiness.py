"""Whether a request can be answered now: some model has a route that is proven, and words that can be used.

It knows nothing of processes: what follows from a model that can never answer is for others to say.
"""

import attrs
import structlog
import trio

from hydra.actors.client import Cluster
from hydra.protocol.refusal import RefusalError, refuse
from hydra.text.cache import TokenizerCache, TokenizerFault, is_model_at

LOOK_EVERY_S = 0.2
TELL_FIRST_S, TELL_EVERY_S = 5.0, 30.0  # a reason that is new is told sooner than the same one again
RETRY_AFTER_S = 10.0  # words are not mended by waiting, but another model may come

log = structlog.get_logger()


@attrs.frozen
class Readiness:
    """Of the models of one cluster."""

    cluster: Cluster
    tokenizers: TokenizerCache

    async def check(self) -> None:
        """Raises RefusalError, which says why not yet."""
        cards = await self.cluster.models()
        faults = [(card.model_id, await self.tokenizers.fault_of(card, cards)) for card in cards]
        usable = tuple(model_id for model_id, fault in faults if fault is None)
        if faults and not usable:
            reasons = "; ".join(f"{model_id}: {fault.refusal.message}" for model_id, fault in faults if fault)
            raise refuse("no_workers", f"no model can answer ({reasons})", retry_after_s=RETRY_AFTER_S)
        reply = await self.cluster.ready(usable)
        if not reply.ready:
            raise refuse("no_workers", reply.why or "not ready", retry_after_s=reply.retry_after_s)

    async def wait(self, needed: str | None) -> TokenizerFault | None:
        """Until some model can answer; or until it is known that the model at the path `needed` cannot, and why.

        However long that takes: a coordinator that says nothing is being started again, and a route may be loading.
        What is waited for is said when it changes, and every now and then.
        """
        began_s = trio.current_time()
        shown, told_s = "", began_s
        while True:
            try:
                if needed is not None and (fault := await self._fault_at(needed)) is not None:
                    return fault
                await self.check()
            except RefusalError as error:
                reason, now_s = error.refusal.message, trio.current_time()
                if now_s - told_s >= (TELL_EVERY_S if reason == shown else TELL_FIRST_S):
                    log.info("not ready yet", waits_s=round(now_s - began_s), why=reason)
                    shown, told_s = reason, now_s
            else:
                return None
            await trio.sleep(LOOK_EVERY_S)

    async def _fault_at(self, model_path: str) -> TokenizerFault | None:
        cards = await self.cluster.models()
        for card in cards:
            if is_model_at(card, model_path):
                return await self.tokenizers.fault_of(card, cards)
        return None
