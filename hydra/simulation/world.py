"""A whole cluster in one event loop: real actors and real codecs, a pretend network, machine room and parent.

    async with open_world(Shape(workers=3, layers=8), seed=7) as world:
        chat = world.chat([1, 2, 3], max_tokens=20)
        await chat.until(5)
        world.kill("w2", back_after_s=2.0)
        await chat.finished()
        world.check(chat)

The faults are in `faults`, what must be true in `checkers`, what each process does in `lives`.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from hydra.actors.families.coordinator import Coordinator, SavedState
from hydra.actors.families.frontend import Frontend
from hydra.actors.planning.desired_model import DesiredModel
from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.simulation.chat import Chat, read
from hydra.simulation.checkers import check_answer, check_quiet
from hydra.simulation.faults import Faults
from hydra.simulation.lives import live_coordinator, live_frontend, live_parent, live_worker
from hydra.simulation.node import Node
from hydra.simulation.pocket_model import MODEL_ID
from hydra.simulation.shape import Shape
from hydra.simulation.traced_network import TracedNetwork

LIVES = {"c": live_coordinator, "p": live_parent, "f": live_frontend, "w": live_worker}  # by a name's first letter


@attrs.define(eq=False)
class World(Faults):
    """Operations on a simulated cluster, for tests and stories."""

    chats: list[Chat] = attrs.field(factory=list)

    def main_of(self, name: str) -> Callable[[Node], Awaitable[None]]:
        return partial(LIVES[name[0]], self)

    def forsake(self, name: str) -> None:
        for chat in self.chats:
            if chat.frontend == name and not chat.over:
                chat.leave()

    async def rebalance(self, frontend: str = "f1") -> None:
        self.say("somebody asks for a rebalance")
        try:
            await self.frontend(frontend).rebalance()
        except RefusalError as error:
            self.say(f"the rebalance was refused: {error.refusal.message}")

    def chat(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        params: SamplingParams = GREEDY,
        stop_ids: tuple[int, ...] = (),
        frontend: str = "f1",
        leave_after: int | None = None,
    ) -> Chat:
        chat = Chat(len(self.chats) + 1, tuple(prompt), max_tokens, params, stop_ids, frontend)
        self.chats.append(chat)
        self.nursery.start_soon(read, self, chat, leave_after)
        return chat

    def workers(self) -> list[str]:
        return [name for name, node in self.nodes.items() if name.startswith("w") and node.alive]

    def holder_of(self, layer: int) -> str:
        """Who computes a layer, as planned now."""
        for _, _, route in self.coordinator.planner.models():
            for placement in route.stages if route else ():
                if placement.share.first_layer <= layer < placement.share.end_layer:
                    return placement.share.node
        raise LookupError(f"nobody holds layer {layer}")

    @property
    def coordinator(self) -> Coordinator:
        family: Coordinator = self.nodes["coordinator"].family
        return family

    def frontend(self, name: str = "f1") -> Frontend:
        family: Frontend = self.nodes[name].family
        return family

    @property
    def stale_dropped(self) -> int:
        """Steps and results of another epoch that were refused, by everybody so far."""
        alive = [node for node in self.nodes.values() if node.alive]
        return self.stale_of_the_dead + sum(node.stale() for node in alive)

    async def until_ready(self, within_s: float = 60.0) -> None:
        await self.eventually(lambda: self.phase() == "ready", within_s, "a route is up")

    def phase(self) -> str:
        node = self.nodes["coordinator"]
        models = node.family.planner.models() if node.alive and node.family is not None else ()
        phases = [phase for _, phase, _ in models]
        return "ready" if "ready" in phases else phases[0] if phases else "none"

    def epoch(self) -> Any:
        """Of the one model's route, or None."""
        return next((route.epoch for _, _, route in self.coordinator.planner.models() if route), None)

    async def eventually(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        deadline_s = trio.current_time() + within_s
        while not holds():
            assert trio.current_time() < deadline_s, f"not within {within_s} s: {what}"
            await trio.sleep(0.05)

    # ------------------------------------------------------------ what must be true

    def check(self, chat: Chat, spare: bool = False) -> None:
        """See `check_answer`."""
        check_answer(self, chat, spare)

    def check_quiet(self) -> None:
        """See `check_quiet`."""
        check_quiet(self)

    async def settle(self, within_s: float = 75.0) -> None:
        """Nobody asks: nothing may be held for anybody, once the leases of the dead and the stuck ran out."""
        deadline_s = trio.current_time() + within_s
        while True:
            await trio.sleep(0.5)
            try:
                return self.check_quiet()
            except AssertionError:
                if trio.current_time() > deadline_s:
                    raise


@asynccontextmanager
async def open_world(shape: Shape, seed: int = 0) -> AsyncIterator[World]:
    """A cluster that has just been switched on; everything in it ends with the block."""
    rng = random.Random(seed)
    network = TracedNetwork(random.Random(rng.getrandbits(64)))
    async with trio.open_nursery() as nursery:
        world = World(
            shape,
            seed,
            nursery,
            rng,
            network,
            SavedState(desired=(DesiredModel(shape.model_path, MODEL_ID, replicas=shape.replicas),)),
        )
        nursery.start_soon(network.run)
        world.start("coordinator")
        if shape.parent:
            world.start("parent")
        for number in range(1, shape.frontends + 1):
            world.start(f"f{number}")
        for number in range(1, shape.workers + 1):
            world.start(f"w{number}")
        await trio.sleep(0.01)
        yield world
        for node in world.nodes.values():
            node.alive = False
        nursery.cancel_scope.cancel()
