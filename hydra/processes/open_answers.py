"""What Ctrl-C says of the answers that are still being written: how many, and for how long they are waited for."""

import httpx2
import trio

from hydra.processes.host_port import ANY_HOST
from hydra.protocol.loopback import LOOPBACK

OPEN_ANSWERS_S = 1.0


async def count_open(url: str) -> int | None:
    """How many answers the cluster at `url` is writing or has queued; None when it does not say so within a second."""
    for host in ANY_HOST:
        url = url.replace(f"//{host}:", f"//{LOOPBACK}:")
    with trio.move_on_after(OPEN_ANSWERS_S):
        try:
            async with httpx2.AsyncClient(timeout=OPEN_ANSWERS_S, trust_env=False) as client:
                models = (await client.get(f"{url}/api/cluster/status")).json()["models"]
                return sum(int(model["running"]) + int(model["waiting"]) for model in models)
        except (httpx2.HTTPError, ValueError, LookupError, TypeError):
            return None  # which `words` says
    return None


def words(n_open: int | None, wait_s: float) -> str:
    """For the first Ctrl-C."""
    if n_open == 0:
        return "stopping: no answer is open"
    some = {None: "open answers have", 1: "1 answer is open and has"}.get(n_open, f"{n_open} answers are open and have")
    return f"stopping: {some} up to {wait_s:.0f} s to end; Ctrl-C again stops now"
