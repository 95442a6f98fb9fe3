"""A coordinator and a frontend inside this process, with worker processes around it: a pipeline without HTTP.

For measuring what the pipeline itself carries. Sessions are asked for here; tokens are counted at the Broker.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import attrs
import trio

from hydra.actors.client import GenerateRequest
from hydra.actors.core.identity import Identity
from hydra.actors.core.ports import Library
from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.actors.planning.desired_model import DesiredModel
from hydra.protocol.batch import token_ids
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.model.model_spec import Described
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.protocol.sampling import GREEDY
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings
from hydra.protocol.wires.wire import CommandHub
from hydra.protocol.wires.zmq_wire import ZmqWires

BENCH_MODEL_ID = "bench"
UP_WITHIN_S = 120.0
ROUND_WITHIN_S = 300.0
PROMPT_TOKENS = 16
COUNT_POLL_S = 0.01  # at a count whose time is taken with it: a late look blurs nothing

Command = Callable[[NodeId, CommandHub], Sequence[str]]  # the argv of a worker process


@attrs.define(eq=False)
class InnerCluster:
    """Ready to take sessions."""

    coordinator: Coordinator
    frontend: Frontend

    async def tokens_per_s(self, sessions: int, tokens: int) -> float:
        """All sessions at once; timed from when every one is decoding until the first is about to end."""
        already_sent = self.coordinator.broker.tokens_sent
        first, last = already_sent + 3 * sessions, already_sent + (tokens - 3) * sessions
        with trio.fail_after(ROUND_WITHIN_S):
            async with trio.open_nursery() as nursery:
                for number in range(sessions):
                    nursery.start_soon(self._read, number, tokens)
                began = await self._reaches(first)
                ended = await self._reaches(last)
        return (ended[1] - began[1]) / (ended[0] - began[0])

    async def _reaches(self, count: int) -> tuple[float, int]:
        while (tokens_sent := self.coordinator.broker.tokens_sent) < count:
            await trio.sleep(COUNT_POLL_S)
        return trio.current_time(), tokens_sent

    async def _read(self, number: int, tokens: int) -> None:
        prompt = token_ids([(number * 31 + i) % 250 for i in range(PROMPT_TOKENS)])
        request = GenerateRequest(model_id=BENCH_MODEL_ID, prompt=prompt, max_tokens=tokens, params=GREEDY, stop_ids=())
        async with self.frontend.generate(request) as pieces:
            async for _ in pieces:
                pass


@asynccontextmanager
async def inner_cluster(
    library: Library, model_path: str, workers: int, command: Command
) -> AsyncIterator[InnerCluster]:
    """Up, with every worker in the route. Raises RefusalError when the model cannot be served."""
    wires = ZmqWires()
    refused: list[Refusal] = []
    hub = wires.hub("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")

    async def describe(path: str) -> Described:
        return await trio.to_thread.run_sync(library.describe, path)

    async def there(described: Described) -> str:
        return ""  # a bench does not delete its own model

    parts = CoordinatorParts(
        hub=hub,
        lane=wires,
        results=wires.step_source("tcp://127.0.0.1:*", 64),
        library=library,
        describe=describe,
        check_source=there,
        dial=wires.dial,
        saved=SavedState(desired=(DesiredModel(model_path, BENCH_MODEL_ID),)),
        save=lambda state: None,
        cluster=ClusterSettings(reserved_vram_gb=0.0),
        engine=EngineSettings(max_running=1024),
        model=ModelSettings(max_model_len=256),  # longer than any session here; a larger pool would only take memory
        on_wish_failed=refused.append,
        expected_workers=workers,
        patience_s=UP_WITHIN_S,
    )
    spoke = wires.spoke(PeerId("bench-frontend"), hub.command_addr, hub.broadcast_addr)
    identity = Identity(node_id=NodeId("bench-frontend"), role="frontend", host="here", pid=os.getpid())
    frontend = Frontend(FrontendParts(identity=identity, spoke=spoke))
    coordinator = Coordinator(parts)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HYDRA_LOG": "warning"}
    try:
        with ExitStack() as processes:
            for number in range(workers):
                argv = [sys.executable, "-m", *command(NodeId(f"w{number}"), hub)]
                process = processes.enter_context(subprocess.Popen(argv, env=env))  # noqa: ASYNC220 - before anything runs
                processes.callback(process.kill)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(coordinator.run)
                await nursery.start(frontend.run)
                with trio.fail_after(UP_WITHIN_S):
                    while not any(phase == "ready" for _, phase, _ in coordinator.planner.models()):
                        if refused:
                            raise RefusalError(refused[0])
                        await trio.sleep(0.05)
                yield InnerCluster(coordinator, frontend)
                nursery.cancel_scope.cancel()
    finally:
        wires.close()
