"""The theatre in which the whole cluster runs in one event loop: a pocket model, virtual time, a pretend network."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs

from hydra.simulation.chat import Chat
from hydra.simulation.pocket_model import MODEL_ID, POCKET_VOCAB, POISON, pocket_reply
from hydra.simulation.shape import Shape
from hydra.simulation.world import World, open_world
from scenarios.playbill import Playbill
from scenarios.theatre import BLIND, Cast, Reader, Sight

LAYERS = 9


@attrs.frozen
class SimulatedReader:
    """A chat of the simulated world."""

    chat: Chat

    @property
    def name(self) -> str:
        return f"reader {self.chat.number}"

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.chat.prompt

    @property
    def max_tokens(self) -> int:
        return self.chat.max_tokens

    @property
    def tokens(self) -> Sequence[int]:
        return self.chat.tokens

    @property
    def finish(self) -> str | None:
        return self.chat.finish

    @property
    def error(self) -> str | None:
        return self.chat.refusal.code if self.chat.refusal is not None else None

    @property
    def over(self) -> bool:
        return self.chat.over

    async def until(self, n_tokens: int) -> None:
        await self.chat.until(n_tokens)

    async def finished(self) -> None:
        await self.chat.finished()

    def leave(self) -> None:
        self.chat.leave()


@attrs.define(eq=False)
class SimulatedTheatre:
    """See `Theatre`. The oracle is the pocket model's own arithmetic."""

    cast: Cast
    bill: Playbill
    world: World
    rng: random.Random
    n_layers: int = LAYERS
    answer_tokens: int = 40
    long_answer_tokens: int = 110
    poison: int = POISON
    _prompts: list[tuple[int, ...]] = attrs.field(factory=list, init=False)

    @property
    def by_hand(self) -> tuple[str, ...]:
        names = tuple(f"w{number}" for number in range(1, self.cast.workers + 1))
        return names if self.cast.mortal else names[len(names) - self.cast.by_hand :]

    async def prompts(self, n: int) -> list[tuple[int, ...]]:
        while len(self._prompts) < n:
            length = 5 + 9 * (len(self._prompts) % 8)
            self._prompts.append(tuple(self.rng.randrange(POCKET_VOCAB) for _ in range(length)))
        return self._prompts[:n]

    def expected(self, prompt: tuple[int, ...], n_tokens: int) -> list[int]:
        return pocket_reply(prompt, n_tokens, LAYERS)[0]

    def ask(self, prompt: tuple[int, ...], max_tokens: int) -> Reader:
        return SimulatedReader(self.world.chat(prompt, max_tokens=max_tokens))

    async def look(self) -> Sight:
        node = self.world.nodes["coordinator"]
        if not node.alive or node.family is None:
            return BLIND
        broker, registry = node.family.broker, node.family.registry
        route = next((route for _, _, route in node.family.planner.models() if route is not None), None)
        blocks, free, running, waiting = broker.statistics(MODEL_ID)
        members = {str(member.hello.node_id): member.hello.pid for member in registry.members()}
        stages = route.stages if route is not None else ()
        return Sight(
            ready=self.world.phase() == "ready",
            epoch=str(route.epoch) if route is not None else "",
            pids={"coordinator": node.pid} | {name: pid for name, pid in members.items() if name.startswith("w")},
            layers={str(s.share.node): range(s.share.first_layer, s.share.end_layer) for s in stages},
            running=running,
            waiting=waiting,
            kv_blocks_held=blocks - free,
            stale_dropped=self.world.stale_dropped,
            tokens_sent=broker.tokens_sent,
        )

    async def kill(self, name: str, *, returns: bool = True) -> None:
        for_good = "" if returns else ", and its parent, so that nobody starts it again"
        self.bill.injected(f"SIGKILL of {name} (pid {self.world.nodes[name].pid}){for_good}")
        self.world.kill(name, self.rng.uniform(0.3, 3.0) if returns else None)

    async def pause(self, name: str) -> None:
        self.bill.injected(f"SIGSTOP of {name} (pid {self.world.nodes[name].pid})")
        self.world.pause(name)

    async def resume(self, name: str) -> None:
        self.bill.injected(f"SIGCONT of {name} (pid {self.world.nodes[name].pid})")
        self.world.resume(name)

    async def cut(self, name: str) -> None:
        self.bill.injected(f"the lines to {name} are cut")
        for other in self._others(name):
            self.world.cut(name, other)

    async def heal(self, name: str) -> None:
        self.bill.injected(f"the lines to {name} are healed")
        for other in self._others(name):
            self.world.heal(name, other)

    async def rebalance(self) -> None:
        self.bill.injected("somebody asks for a rebalance")
        await self.world.rebalance()

    def poison_deaths(self) -> int:
        return self.world.deaths

    async def close(self) -> None:
        await self.world.settle()

    def _others(self, name: str) -> list[str]:
        return ["coordinator", *(worker for worker in self.world.workers() if worker != name)]


@asynccontextmanager
async def open_simulated(cast: Cast, seed: int, bill: Playbill) -> AsyncIterator[SimulatedTheatre]:
    """Up and ready. When the story fails, everything the world saw is in a note."""
    world: World | None = None
    try:
        async with open_world(Shape(workers=cast.workers, layers=LAYERS), seed) as world:
            await world.until_ready()
            bill.begin()
            yield SimulatedTheatre(cast, bill, world, random.Random(f"story {seed}"))
    except BaseException as error:
        if world is not None:
            error.add_note("\n".join(["everything that happened:", *world.story]))
        raise
