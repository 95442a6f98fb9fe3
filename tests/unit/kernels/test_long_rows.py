"""The Broker's engine, a stage's door and the kernels together, where positions depend on how long a row is."""

import copy

import attrs
import pytest

from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.row import Row, RowKey
from hydra.actors.scheduling.scheduler import RouteScheduler
from hydra.actors.stage.stage_line import Fence, FenceBoard, StageLine
from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import Run, Step, StepResult, int32
from hydra.protocol.ids import EPOCH_ZERO
from hydra.protocol.messages.generations import Open
from hydra.protocol.sampling import GREEDY
from tests.unit.kernels.bench import EPOCH, ROUTE, greedy, order, prompt, quiet
from tests.unit.kernels.family_models import SHAPES, publish_family

NEW = 40
BLOCK = 4


class Route:
    """One stage of all layers under an engine that shares prefixes, and sessions that open again when told to."""

    def __init__(self, model):
        self.runner = Runner("cpu", threads=1)
        self.runner.load(order(model, 0, model.spec.n_layers), quiet)
        self.runner.activate(ROUTE, 200)
        board = FenceBoard()
        board.publish(Fence(route=ROUTE, epoch=EPOCH, open=True, last=True))
        self.line = StageLine(board)
        self.engine = RouteScheduler(
            route=ROUTE,
            epoch=EPOCH,
            n_stages=1,
            credits=1,
            ledger=KvLedger(200, BLOCK, prefix_cache=True),
            max_batch_tokens=16,
            length_rule=model.spec.decoder.length_rule,
        )
        self.said: dict[int, list[int]] = {}
        self.reopened: list[tuple[int, int]] = []  # session, tokens of its history
        self.rows = 0

    def open(self, session, ids, attempt=0):
        shown = self.said.setdefault(session, [])
        history = [*ids, *shown]
        opening = Open(
            session=session, attempt=attempt, model_id="m", history=int32(history), prompt_tokens=len(ids),
            max_tokens=NEW, params=GREEDY, stop_ids=(),
        )  # fmt: skip
        self.rows += 1
        row = Row(
            row=self.rows,
            key=RowKey("f", session),
            open=opening,
            arrival=session,
            generated=len(shown),
        )
        self.engine.add(row)
        return row

    def run(self):
        while (composed := self.engine.compose(0.0)) is not None:
            number, batch = composed
            run = self.line.accept(Step(route=ROUTE, epoch=EPOCH, step=number, batch=batch))
            assert isinstance(run, Run), run
            outcome = self.runner.collect(self.runner.launch(run))
            sampled = batch.sample != 0
            result = StepResult(
                route=ROUTE, epoch=EPOCH, step=number, row=batch.row[sampled], attempt=batch.attempt[sampled],
                position=(batch.position + batch.length)[sampled], token=outcome.token,
            )  # fmt: skip
            for place, row in self.engine.take(result, 0.0).items():
                self.said[row.key.session].append(int(result.token[place]))
            for row in self.engine.preempted:
                prompt = row.open.history[: row.open.prompt_tokens].tolist()
                again = self.open(row.key.session, prompt, row.open.attempt + 1)
                self.reopened.append((row.key.session, len(again.history)))
            self.engine.preempted.clear()


@pytest.mark.parametrize("name", ["Phi3-longrope", "Llama-dynamic"])
def test_rows_that_share_a_prefix_and_grow_past_the_switch_equal_transformers(name, tmp_path):
    assert EPOCH != EPOCH_ZERO
    model = publish_family(tmp_path, next(shape for shape in SHAPES if shape.name == name))
    rule = model.spec.decoder.length_rule
    base = prompt(71, 60)
    prompts = {1: base[: rule.limit - 12], 2: base[: rule.limit + 8], 3: base[: rule.limit], 4: base[: rule.limit + 8]}

    def told(ids):
        fresh = attrs.evolve(model, reference=copy.deepcopy(model.reference))
        return greedy(fresh, ids, NEW)

    route = Route(model)
    for session, ids in prompts.items():
        route.open(session, ids)
    route.run()
    for session, ids in prompts.items():
        route.open(session + 10, ids)  # what the first ones have left behind may be shared
    route.run()
    expected = {session: told(ids) for session, ids in prompts.items()}
    assert route.said == expected | {session + 10: tokens for session, tokens in expected.items()}
    grown = [(session, rule.limit + 1) for session in (1, 3, 11, 13)]
    assert sorted(route.reopened) == (grown if rule.reopens else [])
