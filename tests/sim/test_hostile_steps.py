"""Steps with numbers out of all reason on a stage's data lane: they are dropped, and the good ones come through."""

import random

import attrs
import pytest

from hydra.actors.core.machine import Received
from hydra.actors.stage.stage import Activated, Publish, SliceIn, Stage, ThreadFenced
from hydra.actors.stage.stage_line import FenceBoard, StageLine
from hydra.protocol import codec_data
from hydra.protocol.batch import Batch, RowOpening, Run, Step, int32
from hydra.protocol.blob import Blob
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.ids import COORDINATOR, Address, Epoch, RouteId
from hydra.protocol.messages.plans import Activate, LoadSlice
from hydra.protocol.sampling import GREEDY
from hydra.simulation.pocket_model import VOCAB, PocketCompute, pocket_spec
from tests.extremes import Extremes, or_many

KV_BLOCKS, BLOCK_SIZE = 8, 4


def _stage(index: int) -> tuple[StageLine, PocketCompute]:
    """A stage that is ready, by the way that every stage takes there."""
    board, stage = FenceBoard(), Stage()
    compute = PocketCompute(memory_bytes=10**9, kv_blocks_max=99, die=lambda: None)
    order = LoadSlice(
        route=RouteId(1), epoch=Epoch(1, 1), spec=pocket_spec(2), dtype="float32", first_layer=index,
        end_layer=index + 1, tensors=(), sources=(), block_size=BLOCK_SIZE, kv_memory_bytes=1,
    )  # fmt: skip
    plan = Activate(
        route=RouteId(1), epoch=Epoch(1, 1), kv_blocks=KV_BLOCKS, next_addr="mem://x:1", credits=3, stage_index=index,
        n_stages=2,
    )  # fmt: skip
    heard = Address(COORDINATOR, "planner")
    facts = compute.load(order, lambda *_: None)
    compute.activate(RouteId(1), KV_BLOCKS)
    events = [order, ThreadFenced(RouteId(1), order.epoch), SliceIn(RouteId(1), order.epoch, facts), plan]
    for event in [*events, Activated(RouteId(1), order.epoch)]:
        is_message = isinstance(event, LoadSlice | Activate)
        for effect in stage.handle(Received(heard, event) if is_message else event, 0.0):
            if isinstance(effect, Publish):
                board.publish(effect.fence)
    return StageLine(board), compute


def _step(extremes: Extremes, number: int, known: list[int], index: int) -> list[bytes]:
    """Mostly a row that opens with two tokens in one block; then some of it is bent."""
    rng = extremes.rng
    row = 10 + number
    opening = RowOpening(row=row, attempt=0, params=GREEDY, prompt_tokens=2, history_tokens=2)
    batch = Batch(
        row=int32([row]), attempt=int32([0]), position=int32([0]),
        length=int32([2]), sample=int32([1]), new_blocks=int32([1]),
        tokens=int32([3, 4]), blocks=int32([number % KV_BLOCKS]), closed=int32(known[-8:-4]),
        opened=(opening,),
    )  # fmt: skip
    hidden = Blob("float32", (2, 2), bytes(16)) if index else None
    bend = rng.choice(("nothing", "column", "opening", "hidden", "history"))
    if bend == "column":
        name = rng.choice(("row", "attempt", "position", "sample", "tokens", "blocks", "closed"))
        old = getattr(batch, name)
        batch = attrs.evolve(batch, **{name: extremes.column(len(old))})
    elif bend == "opening":
        extremes.wild = 0.0
        params = attrs.evolve(
            GREEDY, stop_ids=tuple(extremes.column(2).tolist()), logit_bias=((rng.choice((1, VOCAB + 2, 2**40)), 1.0),)
        )
        batch = attrs.evolve(batch, opened=(attrs.evolve(opening, params=params),))
    elif bend == "history":
        params = attrs.evolve(GREEDY, presence_penalty=1.0)
        history = extremes.column(rng.choice((0, 1, 2)))
        batch = attrs.evolve(batch, opened=(attrs.evolve(opening, params=params, history=history),))
    elif bend == "hidden":
        hidden = rng.choice((None, Blob("float32", (2, 3), bytes(24)), Blob("int32", (2, 2), bytes(16))))
    step = Step(route=RouteId(1), epoch=Epoch(1, 1), step=number, batch=batch, hidden=hidden)
    return [bytes(frame) for frame in codec_data.encode_step(step)]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("n_steps", or_many(250, 40_000))
def test_no_step_kills_a_stage(index, n_steps):
    rng = random.Random(31)
    extremes = Extremes(rng)
    line, compute = _stage(index)
    taken: list[int] = []
    epoch_steps, n_taken = 1, 0
    for _ in range(n_steps):
        extremes.wild = rng.choice((0.0, 0.2))
        try:
            step = codec_data.decode_step(_step(extremes, epoch_steps, taken, index))
        except TheyBrokeTheRules:
            continue
        accepted = line.accept(step)
        if isinstance(accepted, Run):
            taken += [row.row for row in accepted.rows]
            epoch_steps, n_taken = epoch_steps + 1, n_taken + 1
            compute.launch(accepted)
        elif accepted.breaks_the_route:
            line, compute = _stage(index)
            taken, epoch_steps = [], 1
    assert n_taken > n_steps // 10, "the good ones come through"
