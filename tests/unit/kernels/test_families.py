"""Every family, however it is cut and batched, says what transformers says: logits and greedy tokens."""

import copy

import attrs
import pytest
import torch

from hydra.kernels.attention import sdpa as mix
from hydra.kernels.model.slice import forward
from hydra.kernels.step.runner import Runner
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.model.layer_spec import MoeSpec
from tests.sample import plays_all
from tests.unit.kernels.bench import ROUTE, Pipeline, Published, Row, greedy, order, prompt, quiet
from tests.unit.kernels.family_models import SHAPES, Shape, publish_family, publish_gentle

CUTS = ((), (1,), (1, 3), (1, 2, 3))  # 1 to 4 stages of 4 layers; the later ones have stages of one layer
PROMPTS = (5, 23, 44)  # tokens; short of, and beyond, the windows and original contexts of the shapes
NEW = 64 if plays_all() else 44  # tokens; with the longest prompt beyond every window and original context
TABLES = ([*range(60)], [*range(119, 59, -1)], [120 + (7 * i) % 60 for i in range(60)])  # a run, and scattered

PARAMETERS = [pytest.param(s, id=s.name, marks=[pytest.mark.long] if s.long else []) for s in SHAPES]


@pytest.fixture(scope="module", params=PARAMETERS)
def shape(request) -> Shape:
    return request.param


@pytest.fixture(scope="module")
def model(shape: Shape, tmp_path_factory) -> Published:
    return publish_family(tmp_path_factory.mktemp("family"), shape)


@pytest.fixture(scope="module")
def gentle(shape: Shape, tmp_path_factory) -> Published:
    return publish_gentle(tmp_path_factory.mktemp("gentle"), shape)


@pytest.fixture(scope="module")
def told(model: Published) -> list[list[int]]:
    return reference_greedy(model)


def reference_greedy(model: Published) -> list[list[int]]:
    """Greedy tokens by transformers' generate, without a close choice; each by a model that has seen nothing, because
    a dynamic rope remembers there the longest sequence so far.
    """

    def by_a_fresh_one(n: int) -> list[int]:
        fresh = attrs.evolve(model, reference=copy.deepcopy(model.reference))
        return greedy(fresh, prompt(30 + n, n, model.spec.vocab), NEW)

    return [by_a_fresh_one(n) for n in PROMPTS]


def rows_of(model: Published) -> list[Row]:
    return [Row(prompt(30 + n, n, model.spec.vocab), table) for n, table in zip(PROMPTS, TABLES, strict=True)]


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param(cuts, id=f"{len(cuts) + 1}-stages", marks=[pytest.mark.long] if len(cuts) % 2 else [])
        for cuts in CUTS
    ],
)
def test_greedy_tokens_of_a_ragged_batch(model: Published, told: list[list[int]], cuts: tuple[int, ...]) -> None:
    assert ragged_greedy(Pipeline(model, cuts, kv_blocks=180), model) == told


def ragged_greedy(line: Pipeline, model: Published) -> list[list[int]]:
    """Prompts in chunks beside decodes of other rows; a row that outgrows a switch of its rope is opened again."""
    rows, switch = rows_of(model), switch_of(model)
    while unfinished := [row for row in rows if len(row.ids) < row.prompt_tokens + NEW]:
        for row in unfinished:
            if row.history_tokens <= switch < len(row.ids):
                row.done, row.history_tokens = 0, len(row.ids)
        line.run(*((row, min(9 + i, len(row.ids) - row.done)) for i, row in enumerate(unfinished)))
    return [row.ids[row.prompt_tokens :] for row in rows]


def test_a_replay_draws_the_same_tokens(model: Published, told: list[list[int]]) -> None:
    """The history so far as one prompt of another attempt, on another split, beside other rows."""
    for at in (1, 20, 40):
        line, rows = Pipeline(model, (2,), kv_blocks=180), rows_of(model)
        for row, tokens in zip(rows, told, strict=True):
            row.ids += tokens[:at]
            row.history_tokens = len(row.ids)
        line.run(*((row, len(row.ids)) for row in rows))
        assert [row.ids[-1] for row in rows] == [tokens[at] for tokens in told]


def test_a_stage_reads_the_bytes_of_its_own_tensors(model: Published) -> None:
    for first, end in ((0, 1), (1, 3), (3, 4), (0, 4)):
        facts = Runner("cpu").load(order(model, first, end), quiet)
        own = sum(source.length for source in model.ranges(first, end))
        assert facts.read_bytes == facts.weight_bytes == own == model.spec.slice_bytes(first, end, "float32")


def switch_of(model: Published) -> int:
    """Tokens after which a row must be opened again; more than any row has where there is no such point."""
    ropes = [rope for rope in model.spec.decoder.ropes if rope.kind == "longrope"]
    return ropes[0].original_max_positions if ropes else 1 << 20


def logits_of(line: Pipeline, model: Published) -> list[torch.Tensor]:
    """Every position's logits of every row, [n, vocab] in float32: whole, in chunks, and token by token."""
    slices = [runner._routes[ROUTE].slice for runner in line.runners]
    head = slices[-1].head
    slices[-1] = attrs.evolve(slices[-1], head=None)
    pools = [runner._routes[ROUTE].pool for runner in line.runners]
    rows = rows_of(model)
    said: list[list[torch.Tensor]] = [[] for _ in rows]
    chunks = (44, 7, 1)
    while parts := [(i, row) for i, row in enumerate(rows) if row.done < len(row.ids)]:
        lengths = [min(chunks[i], len(row.ids) - row.done) for i, row in parts]
        batch = Batch(
            row=int32([i for i, _ in parts]),
            attempt=int32([0] * len(parts)),
            position=int32([row.done for _, row in parts]),
            length=int32(lengths),
            sample=int32([0] * len(parts)),
            tokens=int32([t for (_, row), n in zip(parts, lengths, strict=True) for t in row.ids[row.done :][:n]]),
        )
        opened = [
            OpenRow(
                row=i,
                attempt=0,
                prompt_tokens=row.prompt_tokens,
                history_tokens=row.history_tokens,
                blocks=row.blocks,
            )
            for i, row in parts
        ]
        hidden = None
        with torch.inference_mode():
            for part, pool in zip(slices, pools, strict=True):
                hidden = forward(part, pool, batch, opened, hidden)
            logits = head(hidden)
        for (i, row), piece in zip(parts, logits.split(lengths), strict=True):
            said[i].append(piece.cpu())
            row.done += len(piece)
    return [torch.cat(pieces) for pieces in said]


@torch.inference_mode()
def reference_logits(model: Published, dtype: torch.dtype) -> list[torch.Tensor]:
    reference = copy.deepcopy(model.reference).to(dtype)
    return [reference(torch.tensor([row.ids])).logits[0].float() for row in rows_of(model)]


def relative_errors(said: list[torch.Tensor], expected: list[torch.Tensor]) -> torch.Tensor:
    """Of each position of all rows: the greatest difference over the row's greatest logit."""
    return torch.cat([(a - b).abs().amax(-1) / b.abs().max() for a, b in zip(said, expected, strict=True)])


def test_float32_logits(model: Published) -> None:
    said = logits_of(Pipeline(model, (1, 3), kv_blocks=180), model)
    assert float(relative_errors(said, reference_logits(model, torch.float32)).max()) < 2e-4


def test_a_long_prompt_in_pieces_of_scores(tmp_path, monkeypatch) -> None:
    """Two rows of scores at a time."""
    monkeypatch.setattr(mix, "SCORES_MAX", 2 * 4 * 44)
    model = publish_family(tmp_path, next(shape for shape in SHAPES if shape.name == "Gemma2-window"))
    said = logits_of(Pipeline(model, (1, 3), kv_blocks=180), model)
    assert float(relative_errors(said, reference_logits(model, torch.float32)).max()) < 2e-4


@torch.inference_mode()
def assert_clear_routers(model: Published) -> None:
    """Or one would compare chances: where two experts are nearly as likely, rounding chooses another one, here and in
    all that attends to it. Every expert is chosen somewhere.
    """
    config, used = model.reference.config.get_text_config(), set()
    k = config.num_experts_per_tok
    for row in rows_of(model):
        told = model.reference(torch.tensor([row.ids]), output_router_logits=True)
        assert len(told.router_logits) == sum(
            isinstance(layer.feed_forward, MoeSpec) for layer in model.spec.decoder.layers
        )
        for scores in told.router_logits:
            ordered, experts = scores.sort(descending=True)
            used.update(experts[:, :k].flatten().tolist())
            if k < config.num_local_experts:
                assert float((ordered[:, k - 1] - ordered[:, k]).min()) > 0.25
    assert used == set(range(config.num_local_experts))


def test_bfloat16_logits(gentle: Published) -> None:
    """At every position, those of mixtures too."""
    if any(isinstance(kind.feed_forward, MoeSpec) for kind in gentle.spec.decoder.kinds):
        assert_clear_routers(gentle)
    said = logits_of(Pipeline(gentle, (1, 3), kv_blocks=180, dtype="bfloat16"), gentle)
    errors = relative_errors(said, reference_logits(gentle, torch.bfloat16))
    assert 0 < float(errors.max()) < 2e-2


def test_every_family_has_two_shapes_and_one_in_the_short_run() -> None:
    from hydra.store.models.families import FAMILIES
    from hydra.store.models.families.wrappers import MULTIMODAL

    for family in FAMILIES:
        kind = family.removesuffix("ForCausalLM")
        alone = [shape for shape in SHAPES if not shape.text]
        shapes = [shape for shape in alone if shape.config in (f"{kind}Config", f"{kind}TextConfig")]
        assert len(shapes) >= 2 and not all(shape.long for shape in shapes), family
    for wrapper in MULTIMODAL.values():  # the arithmetic is that of a family
        config = f"{wrapper.architecture.removesuffix('ForConditionalGeneration')}Config"
        shapes = [shape for shape in SHAPES if shape.config == config]
        assert len(shapes) >= 2 and {family.model_type for family in wrapper.texts} == {shape.text for shape in shapes}
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert all(isinstance(shape, Shape) for shape in SHAPES)
