"""A row whose logits are no numbers, and what it leaves in the pool, change not one bit of any other row.

Memory that nobody has written yet, or that such a row has given back, is filled with NaN; on every path through
attention the answers must be those of a pool of zeros. Steps of one token per row are also taken on the paged path,
spelled out as in test_decode_step.py.
"""

import attrs
import numpy as np
import pytest
import torch

from hydra.kernels.model.feed_forward import Mixture
from hydra.protocol.batch import ROW_FINE, ROW_NOT_FINITE, Outcome
from hydra.protocol.sampling import SamplingParams
from tests.unit.kernels.bench import LIBRARY, ROUTE, Pipeline, Published, Row, prompt, publish
from tests.unit.kernels.family_models import SHAPES, publish_family
from tests.unit.kernels.test_decode_step import Replayed, SpelledOut
from tests.unit.kernels.test_families import TABLES
from tests.unit.kernels.test_feed_forward import HIDDEN, mixture, weights

BAD = 1000  # the token whose embedding is NaN
NAMES = (
    "Llama-dynamic",  # grouped heads, in place and gathered
    "Mistral-window",
    "Mixtral-window",  # one expert of six
    "Gemma2-window",  # scores spelled out, and windows
    "Gemma2-one-head",
)
SHOWN = SamplingParams(temperature=0.0, logprobs=20)
DRAWN = SamplingParams(seed=5, top_p=0.9, min_p=0.01, frequency_penalty=0.3, repetition_penalty=1.2, logprobs=3)


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory) -> Published:
    return publish_family(tmp_path_factory.mktemp("family"), next(s for s in SHAPES if s.name == request.param))


@pytest.fixture(params=["plain", "paged"])
def path(request, monkeypatch) -> str:
    if request.param == "paged":
        monkeypatch.setattr("hydra.kernels.model.slice.runs_triton", lambda device: True)
        monkeypatch.setattr("hydra.kernels.model.slice.attends_to_all", lambda dtype, device: True)
        monkeypatch.setattr(
            "hydra.kernels.model.softmax_attention.make_decode",
            lambda scale, softcap, sinks, dtype, device: SpelledOut(scale, softcap, [], sinks),
        )
        monkeypatch.setattr("hydra.kernels.step.runner.DecodeGraphs", lambda part, pool: Replayed(part, pool, []))
    return request.param


@torch.inference_mode()
def pipeline(model: Published, fill: float) -> Pipeline:
    """Two stages, all of their KV memory at `fill`."""
    line = Pipeline(model, (2,), kv_blocks=180)
    for runner in line.runners:
        for layer in runner._routes[ROUTE].pool.layers:
            layer.keys.fill_(fill)
            layer.values.fill_(fill)
    return line


@torch.inference_mode()
def damage(line: Pipeline) -> None:
    """The embedding of one token."""
    embedding = line.runners[0]._routes[ROUTE].slice.embedding.matrix
    embedding[BAD] = float("nan")


def rows_of(model: Published) -> list[Row]:
    ids = [[token % (BAD - 1) for token in prompt(30 + n, n, model.spec.vocab)] for n in (5, 23, 44)]
    return [Row(one, table, params) for one, table, params in zip(ids, TABLES, (SHOWN, DRAWN, SHOWN), strict=True)]


def steps(line: Pipeline, rows: list[Row], n: int, *company: Row) -> list[tuple[object, ...]]:
    """All bits of `n` steps: prompts in chunks behind a past, beside decodes and beside the company."""
    seen: list[tuple[object, ...]] = []
    for _ in range(n):
        parts = [(row, min(9 + i, len(row.ids) - row.done)) for i, row in enumerate((*rows, *company))]
        outcome = line.run(*parts)
        told = [i for i, (row, _) in enumerate(parts[: len(rows)]) if row.done == len(row.ids) - 1]
        seen.append(bits(outcome, len(told)))
    return seen


def bits(outcome: Outcome, n: int) -> tuple[object, ...]:
    logprobs = outcome.logprobs
    shown = () if logprobs is None else (logprobs.chosen[:n], logprobs.top_ids[:n, :3], logprobs.top[:n, :3])
    return (outcome.token[:n].tolist(), outcome.fault[:n].tolist(), *(part.tobytes() for part in shown))


def test_what_the_pool_held_before_is_never_seen(model: Published, path: str) -> None:
    clean, dirty = (steps(pipeline(model, fill), rows_of(model), 8) for fill in (0.0, float("nan")))
    assert clean == dirty
    assert all(not any(faults) for _, faults, *_ in clean)


def test_a_broken_row_harms_neither_its_neighbours_nor_who_gets_its_blocks(model: Published, path: str) -> None:
    """The same steps with the same company, whose token is damaged in one of the two."""
    seen = []
    for damaged in (False, True):
        line, rows = pipeline(model, 0.0), rows_of(model)
        if damaged:
            damage(line)
        company = Row([3, 4, BAD, 5], list(range(170, 178)), DRAWN)
        told = steps(line, rows, 5, company)
        heir = Row([7, 8, 9, 10, 11, 12], list(range(177, 169, -1)), SHOWN)
        seen.append((told, steps(line, [*rows, heir], 4)))
        assert company.ids[4:] == [0] * 5 if damaged else len(set(company.ids[4:])) > 1
    assert seen[0] == seen[1]


def test_the_broken_row_alone_is_named(untied: Published) -> None:
    line = pipeline(untied, 0.0)
    damage(line)
    rows = [Row([1, 2, 3], [1, 2]), Row([1, BAD, 3], [3, 4]), Row([4, 5], [5, 6], DRAWN)]
    outcome = line.run(*((row, len(row.ids)) for row in rows))
    assert outcome.fault.tolist() == [ROW_FINE, ROW_NOT_FINITE, ROW_FINE] and outcome.token[1] == 0
    assert np.isfinite(outcome.logprobs.chosen[2]) and np.isfinite(outcome.logprobs.top[2]).all()


def test_damaged_weights_load_and_break_every_row(tmp_path) -> None:
    """Also while warming up: nothing is raised anywhere."""
    model = publish(tmp_path, seed=1)
    with torch.no_grad():
        model.reference.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.reference.save_pretrained(tmp_path)
    line = Pipeline(attrs.evolve(model, described=LIBRARY.describe(str(tmp_path))), (2,))
    outcome = line.run((Row([1, 2, 3], [1]), 3), (Row([4], [2], DRAWN), 1))
    assert outcome.fault.tolist() == [ROW_NOT_FINITE] * 2 and outcome.token.tolist() == [0, 0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_the_router_of_a_mixture_takes_any_number(top_k: int, poison: float) -> None:
    """Whoever stands beside such a token has the bits that it has beside a sound one with the same experts."""
    held = weights(2)
    layer = mixture(held, top_k)
    assert isinstance(layer, Mixture)
    x = torch.randn(9, HIDDEN)
    broken = x.clone()
    broken[4] = poison
    x[4] = next(
        token for token in torch.randn(5000, HIDDEN) if experts(held, token, top_k) == experts(held, broken[4], top_k)
    )
    made, sound = layer(broken), layer(x)
    assert torch.equal(made[[0, 1, 2, 3, 5, 6, 7, 8]], sound[[0, 1, 2, 3, 5, 6, 7, 8]])
    assert not torch.isfinite(made[4]).any() and torch.isfinite(sound).all()


def experts(held: dict[str, torch.Tensor], token: torch.Tensor, top_k: int) -> set[int]:
    return set((held["router"] @ token).softmax(-1).topk(top_k).indices.tolist())
