"""One seed, one story: a cluster of some shape, some readers, some faults; then calm, and everything must be right.

Phase 1 is about safety: what is shown must be the oracle's, whatever breaks. Phase 2 is about life: once the world is
whole again, everybody must be answered within a bound. The seed chooses which kinds of faults take part at all, so
that rare combinations are not drowned by frequent ones.
"""

import math
import random
from collections.abc import Collection

import attrs
import trio

from hydra.protocol.sampling import GREEDY, SamplingParams
from hydra.simulation.chat import Chat
from hydra.simulation.determinism import run_sim
from hydra.simulation.http_reader import words_directory
from hydra.simulation.memory_wire import uniform
from hydra.simulation.pocket_model import FRAIL, FRAIL_FOR, MAX_POSITIONS, POCKET_VOCAB, POISON, pocket_reply
from hydra.simulation.shape import Shape
from hydra.simulation.world import World, open_world

FAULT_KINDS = (
    "kill",
    "kill_for_good",
    "coordinator",
    "frontend",
    "pause",
    "partition",
    "one_way",
    "hang",
    "snap",
    "rebalance",
    "join",
)
MEANS = ("hop", "load_refused", "load_hangs", "state_lost")  # what a cluster needs and did not get
# What no calm ends. Those that are SURVIVED are among the
# faults of every seed; the others have tests of their own, which say that they still fail.
LASTING = ("hop_for_good", "load_refused_for_good", "load_hangs_for_good")
SURVIVED: tuple[str, ...] = LASTING
CALM_BOUND_S = 150.0
LOSSES = ("kill", "kill_for_good", "pause", "hang", "partition", "one_way")  # of a worker, perhaps under a request


@attrs.frozen(kw_only=True)
class Talk:
    """A reader to come."""

    at_s: float
    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams
    stop_ids: tuple[int, ...]
    leave_after: int | None
    frontend: str


@attrs.frozen(kw_only=True)
class Trouble:
    """A fault to come."""

    at_s: float
    kind: str
    target: str
    other: str
    for_s: float


@attrs.frozen(kw_only=True)
class Plot:
    """What one seed is about."""

    seed: int
    shape: Shape
    talks: tuple[Talk, ...]
    troubles: tuple[Trouble, ...]
    delay_s: tuple[float, float]
    duplicate: float
    poison: bool

    def headline(self) -> str:
        kinds = ", ".join(f"{t.kind} {t.target} at {t.at_s:.2f}" for t in self.troubles) or "no faults"
        return f"seed {self.seed}: {self.shape}, {len(self.talks)} talks, delays {self.delay_s}, {kinds}"


@attrs.frozen(kw_only=True)
class Outcome:
    """What a story came to."""

    plot: Plot
    story: tuple[str, ...]
    trace: int
    virtual_s: float
    stale_dropped: int
    replays: int


def plot_of(seed: int) -> Plot:
    rng = random.Random(f"plot {seed}")
    workers = rng.randint(1, 4)
    tiny = rng.random() < 0.3
    shape = Shape(
        workers=workers,
        layers=rng.randint(4, 12),
        frontends=1 if rng.random() < 0.7 else 2,
        parent=rng.random() < 0.8,
        kv_blocks=MAX_POSITIONS // 4 + rng.randint(0, 8) if tiny else 256,
        engine=attrs.evolve(
            Shape().engine, max_batch_tokens=rng.choice((0, 0, 8, 32)), prefix_cache=rng.random() < 0.8
        ),
        step_s=rng.choice((0.002, 0.01, 0.04)),
    )
    if rng.random() < 0.25:
        shape = attrs.evolve(shape, http=True, model_path=words_directory())
    poison = rng.random() < 0.08
    sender = rng.randbytes(1)[0]
    shared = tuple(rng.randrange(POCKET_VOCAB) for _ in range(40)) if rng.random() < 0.4 else ()
    talks: list[Talk] = []
    for _ in range(rng.randint(1, 8)):
        length = rng.randint(1, 60)
        prompt = tuple((sender + rng.randrange(POCKET_VOCAB)) % POCKET_VOCAB for _ in range(length))
        if shared and rng.random() < 0.7:
            prompt = (shared + prompt)[: max(length, rng.randint(1, 60))]
        params = (
            GREEDY
            if rng.random() < 0.6
            else SamplingParams(seed=rng.getrandbits(40), choice=0 if shape.http else rng.randrange(3))
        )
        max_tokens = rng.randint(1, 40)
        stop_ids = (rng.randrange(POCKET_VOCAB), rng.randrange(POCKET_VOCAB)) if rng.random() < 0.3 else ()
        if rng.random() < 0.3:  # a stop that is really met
            stop_ids = (pocket_reply(prompt, rng.randint(1, max_tokens), shape.layers, (), params)[0][-1],)
        talks.append(
            Talk(
                at_s=rng.uniform(0.0, 2.5),
                prompt=prompt,
                max_tokens=max_tokens,
                params=params,
                stop_ids=stop_ids,
                leave_after=rng.randint(0, max_tokens) if rng.random() < 0.12 else None,
                frontend=f"f{rng.randint(1, shape.frontends)}",
            )
        )
    if poison:
        at = rng.randrange(len(talks))
        talks[at] = attrs.evolve(talks[at], prompt=(*talks[at].prompt[:20], POISON), leave_after=None)
    kinds = [kind for kind in FAULT_KINDS if rng.random() < 0.4]
    troubles: list[Trouble] = []
    for _ in range(0 if poison or not kinds else rng.randint(0, 4)):
        names = [f"w{n}" for n in range(1, workers + 1)]
        target = rng.choice(names)
        troubles.append(
            Trouble(
                at_s=rng.uniform(0.0, 4.0),
                kind=rng.choice(kinds),
                target=target,
                other=rng.choice(["coordinator", "coordinator", *[n for n in names if n != target], "f1"]),
                for_s=rng.choice((rng.uniform(0.1, 2.0), rng.uniform(3.0, 10.0))),
            )
        )
    slow = rng.random()
    delay_s = (0.0001, 0.0005) if slow < 0.5 else (0.0005, 0.01) if slow < 0.85 else (0.001, 0.15)
    return Plot(
        seed=seed,
        shape=shape,
        talks=tuple(sorted(talks, key=lambda talk: talk.at_s)),
        troubles=tuple(sorted(troubles, key=lambda trouble: trouble.at_s)),
        delay_s=delay_s,
        duplicate=0.02 if rng.random() < 0.2 else 0.0,
        poison=poison,
    )


def broken_row_plot(seed: int) -> Plot:
    """The seed's cluster and troubles with eight talks, of which one becomes no numbers; often they share a prefix, and
    in a third of the seeds the others come while it is being computed.
    """
    plot, rng = plot_of(seed), random.Random(f"a broken row {seed}")
    shared = tuple(rng.randrange(POCKET_VOCAB) for _ in range(rng.randint(4, 40))) if rng.random() < 0.7 else ()
    crowd, broken_s = rng.random() < 0.35, rng.uniform(0.6, 1.5)
    talks: list[Talk] = []
    for number in range(8):
        prompt = shared + tuple(rng.randrange(POCKET_VOCAB) for _ in range(rng.randint(1, 30)))
        if number == 0:
            prompt = (*prompt[: rng.randint(len(shared), len(prompt))], FRAIL)
            prompt += tuple(
                rng.randrange(POCKET_VOCAB) for _ in range(FRAIL_FOR if crowd else rng.randint(0, FRAIL_FOR + 2))
            )
        talk = Talk(
            at_s=broken_s if number == 0 else broken_s + rng.uniform(0.0, 0.05) if crowd else rng.uniform(0.0, 1.5),
            prompt=prompt,
            max_tokens=FRAIL_FOR + 4 if number == 0 else rng.randint(1, 40),
            params=GREEDY if rng.random() < 0.6 else SamplingParams(seed=rng.getrandbits(40)),
            stop_ids=(),
            leave_after=None,
            frontend=f"f{rng.randint(1, plot.shape.frontends)}",
        )
        talks.append(talk)
    return attrs.evolve(plot, talks=tuple(sorted(talks, key=lambda talk: talk.at_s)), poison=False)


def short_memory_plot(seed: int) -> Plot:
    """The seed's cluster and troubles with eight talks, and workers that have no memory for larger steps. Often the
    talks share a prefix, come at once, and leave early.
    """
    plot, rng = plot_of(seed), random.Random(f"short memory {seed}")
    limits = [rng.choice((0, 2, 5, 11, 24)) for _ in range(plot.shape.workers)]
    limits[rng.randrange(len(limits))] = rng.choice((2, 5, 11, 24))
    shared = tuple(rng.randrange(POCKET_VOCAB) for _ in range(rng.randint(8, 40))) if rng.random() < 0.7 else ()
    together_s = rng.uniform(0.6, 1.5) if rng.random() < 0.5 else None
    talks: list[Talk] = []
    for _ in range(8):
        at_s = rng.uniform(0.0, 1.5) if together_s is None else together_s + rng.uniform(0.0, 0.06)
        talk = Talk(
            at_s=at_s,
            prompt=shared + tuple(rng.randrange(POCKET_VOCAB) for _ in range(rng.randint(1, 30))),
            max_tokens=rng.randint(1, 40),
            params=GREEDY if rng.random() < 0.6 else SamplingParams(seed=rng.getrandbits(40)),
            stop_ids=(),
            leave_after=0 if rng.random() < 0.1 else None,
            frontend=f"f{rng.randint(1, plot.shape.frontends)}",
        )
        talks.append(talk)
    shape = attrs.evolve(plot.shape, step_tokens_max=tuple(limits))
    return attrs.evolve(plot, shape=shape, talks=tuple(sorted(talks, key=lambda talk: talk.at_s)), poison=False)


def means_plot(seed: int, lasting: Collection[str] = SURVIVED) -> Plot:
    """The seed's story; in most seeds, what the cluster needs fails too: hops, loads, and its memory of itself."""
    plot, rng = plot_of(seed), random.Random(f"means {seed}")
    names = [f"w{n}" for n in range(1, plot.shape.workers + 1)]
    if plot.poison or rng.random() < 0.3:
        return plot
    kinds = [kind for kind in (*MEANS, *LASTING) if rng.random() < 0.5]
    kinds = [kind for kind in kinds if kind in MEANS or kind in lasting]
    troubles = list(plot.troubles)
    for _ in range(rng.randint(1, 3) if kinds else 0):
        kind, target = rng.choice(kinds), rng.choice(names)
        others = [name for name in ("coordinator", *names) if name != target]
        ends = (target, rng.choice(others)) if rng.random() < 0.6 else (rng.choice(others), target)
        at_s = 0.0 if kind == "hop" and rng.random() < 0.3 else rng.uniform(0.0, 4.0)
        for_s = rng.choice((rng.uniform(0.1, 2.0), rng.uniform(3.0, 10.0)))
        if kind.endswith("for_good"):
            if len(names) == 1 or any(trouble.kind.endswith("for_good") for trouble in troubles):
                continue  # somebody must be left who can do without it
            for_s = math.inf
        troubles.append(Trouble(at_s=at_s, kind=kind, target=ends[0], other=ends[1], for_s=for_s))
        if kind.startswith("state"):  # of which nobody hears until a coordinator begins with what was kept
            troubles.append(
                Trouble(at_s=at_s + 0.5 * min(for_s, 3.0), kind="coordinator", target=target, other="", for_s=1.0)
            )
    return attrs.evolve(plot, troubles=tuple(sorted(troubles, key=lambda trouble: trouble.at_s)))


def replicas_plot(seed: int) -> Plot:
    """Two deployments of one model over three to five workers, and kills on either: some return, some do not."""
    plot, rng = plot_of(seed), random.Random(f"replicas {seed}")
    workers = rng.randint(3, 5)
    shape = attrs.evolve(plot.shape, workers=workers, replicas=2, layers=max(plot.shape.layers, 4), kv_blocks=256)
    talks = [
        Talk(
            at_s=rng.uniform(0.0, 3.0),
            prompt=tuple(rng.randrange(POCKET_VOCAB) for _ in range(rng.randint(1, 40))),
            max_tokens=rng.randint(5, 40),
            params=GREEDY if rng.random() < 0.6 else SamplingParams(seed=rng.getrandbits(40)),
            stop_ids=(),
            leave_after=None,
            frontend=f"f{rng.randint(1, shape.frontends)}",
        )
        for _ in range(8)
    ]
    names = [f"w{n}" for n in range(1, workers + 1)]
    for_good = rng.choice(names) if rng.random() < 0.5 else None
    troubles = [
        Trouble(
            at_s=rng.uniform(0.6, 4.0),
            kind="kill_for_good"
            if name == for_good
            else rng.choice(("kill", "kill", "pause", "coordinator", "rebalance")),
            target=name,
            other="coordinator",
            for_s=rng.choice((rng.uniform(0.1, 2.0), rng.uniform(3.0, 8.0))),
        )
        for name in rng.sample(names, rng.randint(1, 3))
    ]
    return attrs.evolve(
        plot,
        shape=shape,
        talks=tuple(sorted(talks, key=lambda talk: talk.at_s)),
        troubles=tuple(sorted(troubles, key=lambda trouble: trouble.at_s)),
        poison=False,
    )


async def _strike(world: World, trouble: Trouble) -> None:
    await trio.sleep_until(trouble.at_s)
    name, for_s = trouble.target, trouble.for_s
    match trouble.kind:
        case "hop" | "hop_for_good":
            world.sever(name, trouble.other, for_s)
        case "load_refused" | "load_refused_for_good":
            world.fail_loads(_worker_of(trouble), "refused", for_s)
        case "load_hangs" | "load_hangs_for_good":
            world.fail_loads(_worker_of(trouble), "hangs", for_s)
        case "state_lost":
            world.fail_saves(for_s, forget=for_s > 1.0)
        case "kill":
            world.kill(name, back_after_s=for_s)
        case "kill_for_good":
            world.kill(name)
        case "coordinator":
            world.kill("coordinator", back_after_s=min(for_s, 3.0))
        case "pause":
            world.pause(name, for_s)
        case "partition":
            world.cut(trouble.other if trouble.other != "f1" else "coordinator", _end(trouble), for_s)
        case "one_way":
            ends = (trouble.other if trouble.other != "f1" else "coordinator", _end(trouble))
            world.deafen(*(ends if for_s < 1.0 else ends[::-1]), for_s)
        case "frontend":
            world.kill("f1", back_after_s=min(for_s, 3.0))
        case "rebalance":
            if world.nodes["f1"].alive:
                await world.rebalance()
        case "join":
            late = f"w{max(int(name[1:]) for name in world.nodes if name[0] == 'w') + 1}"
            world.start(late)
        case "hang":
            world.hang(name)
        case "snap":
            world.say(f"connections between {name} and {trouble.other} break")
            world.network.snap(name, trouble.other)
        case _:
            raise AssertionError(trouble.kind)


def _worker_of(trouble: Trouble) -> str:
    return trouble.other if trouble.target == "coordinator" else trouble.target


def _end(trouble: Trouble) -> str:
    return "f1" if trouble.other == "f1" else trouble.target


async def play(plot: Plot) -> Outcome:
    """Raises AssertionError when anything is not as it must be; the story is in its notes."""
    world: World | None = None
    try:
        async with open_world(plot.shape, plot.seed) as world:
            await _play(world, plot)
            return Outcome(
                plot=plot,
                story=tuple(world.story),
                trace=world.network.trace,
                virtual_s=trio.current_time(),
                stale_dropped=world.stale_dropped,
                replays=sum(node.family.sessions.replays for name, node in world.nodes.items() if name.startswith("f")),
            )
    except BaseException as why:
        if world is not None:
            why.add_note("\n".join([plot.headline(), *world.story]))
        raise


async def _play(world: World, plot: Plot) -> None:
    world.network.default.delay = uniform(*plot.delay_s)
    for link in world.network._links.values():
        link.delay = world.network.default.delay
    names = [f"w{n}" for n in range(1, plot.shape.workers + 1)]
    for one in names:
        for other in names:
            world.network.link(one, other).duplicate = plot.duplicate
    for trouble in plot.troubles:
        world.nursery.start_soon(_strike, world, trouble)
    chats: list[Chat] = []
    for talk in plot.talks:
        await trio.sleep_until(talk.at_s)
        chats.append(
            world.chat(
                talk.prompt,
                max_tokens=talk.max_tokens,
                params=talk.params,
                stop_ids=talk.stop_ids,
                leave_after=talk.leave_after,
                frontend=talk.frontend,
            )
        )
    last_s = max((t.at_s + t.for_s for t in plot.troubles if math.isfinite(t.for_s)), default=0.0)
    with trio.move_on_after(max(2.0, last_s - trio.current_time())):
        for chat in chats:
            await chat.finished()
    if trio.current_time() < max((t.at_s for t in plot.troubles), default=0.0):
        await trio.sleep_until(max(t.at_s for t in plot.troubles) + 0.1)
    world.calm_down()
    with trio.move_on_after(CALM_BOUND_S):
        for chat in chats:
            await chat.finished()
    open_still = [chat.number for chat in chats if not chat.over]
    assert not open_still, f"chats {open_still} got no end within {CALM_BOUND_S} s of calm"
    await world.until_ready(200.0)  # a stuck thread has its lease to come back, a load that hangs its silence
    losses = sum(trouble.kind in LOSSES for trouble in plot.troubles)
    for chat in chats:
        limit = chat.refusal is not None and chat.refusal.code == "replay_limit"
        if POISON in chat.prompt:
            assert limit and not chat.tokens, f"poison ended as {chat.refusal} after {len(chat.tokens)} tokens"
        else:
            world.check(chat, spare=limit and losses > 2)
    await world.settle()


def play_seed(seed: int) -> Outcome:
    return run_sim(seed, play, plot_of(seed))


def play_means(seed: int, lasting: Collection[str] = SURVIVED) -> Outcome:
    return run_sim(seed, play, means_plot(seed, lasting))


def play_replicas(seed: int) -> Outcome:
    return run_sim(seed, play, replicas_plot(seed))


def play_broken_row(seed: int) -> Outcome:
    return run_sim(seed, play, broken_row_plot(seed))


def play_short_memory(seed: int) -> Outcome:
    return run_sim(seed, play, short_memory_plot(seed))
