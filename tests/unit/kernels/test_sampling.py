"""Drawing is a pure function of its row: masks against a naive twin, noise against its distribution, batch or alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra.kernels.sampling.noise import gumbel, hashed, stream_key
from hydra.kernels.sampling.sampler import TEMPERATURE_MIN, Pick, _edited, _narrowed, _tempered, sample, settle
from hydra.protocol.batch import ROW_FINE, ROW_NOT_FINITE, int32
from hydra.protocol.sampling import SamplingParams
from tests.unit.kernels.bench import Pipeline, Row, prompt

VOCAB = 1003
MASK = (1 << 64) - 1


def logits_of(seed: int, rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def pick(position: int = 9, history: tuple[int, ...] = (), prompt_tokens: int = 4, **params: object) -> Pick:
    ids = int32(history)
    return Pick(params=SamplingParams(**params), position=position, prompt_tokens=prompt_tokens, history=ids)


def draw(logits: torch.Tensor, *picks: Pick) -> list[int]:
    return settle(sample(logits, picks)).token.tolist()


def test_hash_is_splitmix64():
    """Against the published algorithm in Python's own integers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first output of splitmix64 seeded with 0
    key, ids = stream_key(MASK, 3, 77), torch.arange(500)
    expected = [mix((key + i * 0x9E3779B97F4A7C15) & MASK) for i in range(500)]
    assert [bits & MASK for bits in hashed(key, ids).tolist()] == expected
    assert hashed(key, ids[123:124]).item() & MASK == expected[123]


def test_noise_is_gumbel():
    noise = gumbel(stream_key(1, 0, 0), torch.arange(200_000)).double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.03
    assert (torch.exp(-torch.exp(-noise)).sort().values - torch.linspace(0, 1, 200_000)).abs().max() < 0.005


def test_each_ingredient_changes_the_stream():
    keys = {stream_key(s, c, p) for s in (0, 1, MASK) for c in (0, 1) for p in (0, 1, 2)}
    assert len(keys) == 18


def test_draws_follow_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    drawn = [draw(logits, pick(position=p, seed=5))[0] for p in range(3000)]
    shares = np.bincount(drawn, minlength=4) / 3000
    np.testing.assert_allclose(shares, logits.softmax(-1)[0].numpy(), atol=0.03)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 7},
        {"top_p": 0.6},
        {"top_k": 50, "top_p": 0.4},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"temperature": 0.0, "repetition_penalty": 1.8},
        {"temperature": 0.9, "presence_penalty": -2.0, "frequency_penalty": 0.4, "repetition_penalty": 0.6},
        {"temperature": 0.0, "logit_bias": ((5, 100.0), (2000, 100.0))},
        {"logit_bias": ((5, 6.0), (6, 6.5)), "repetition_penalty": 2.0, "top_k": 3},
    ],
)
def test_masks_against_a_naive_twin(params):
    history = (5, 5, 6, 900, 6, 7, 7, 7, 1002)
    for seed in range(8):
        logits = logits_of(seed)
        chosen = pick(history=history, seed=seed, **params)
        assert draw(logits, chosen) == [naive(logits[0].double().numpy(), chosen)]


def naive(logits: np.ndarray, chosen: Pick) -> int:
    """The order SamplingParams promises, one token id at a time, in float64."""
    p, scores = chosen.params, [float(x) for x in logits]
    for token, bias in p.logit_bias:
        if token < len(scores):
            scores[token] += bias
    if p.needs_history:
        history = chosen.history.tolist()
        answer = history[chosen.prompt_tokens :]
        for token in set(history):
            scores[token] = (
                scores[token] / p.repetition_penalty if scores[token] > 0 else scores[token] * p.repetition_penalty
            )
        for token in set(answer):
            scores[token] -= p.presence_penalty + p.frequency_penalty * answer.count(token)
    if p.temperature == 0:
        return int(np.argmax(scores))
    scores = [x / p.temperature for x in scores]
    left = sorted(range(len(scores)), key=lambda i: -scores[i])
    left = left[: p.top_k] if p.top_k else left
    weights = np.exp([scores[i] - scores[left[0]] for i in left])
    before = np.concatenate(([0.0], np.cumsum(weights / weights.sum())[:-1]))
    left = [i for i, mass in zip(left, before, strict=True) if mass < p.top_p]
    left = [i for i in left if math.exp(scores[i] - scores[left[0]]) >= p.min_p]
    noise = gumbel(stream_key(p.seed, p.choice, chosen.position), torch.arange(len(scores))).tolist()
    return max(left, key=lambda i: scores[i] + noise[i])


def test_a_wide_nucleus_is_found_beyond_the_first_look():
    """Flat logits over more tokens than the quick search holds: drawn ids must reach past it, and stop in time."""
    logits = torch.linspace(0.001, 0.0, 4000)[None]
    drawn = [draw(logits, pick(position=p, top_p=0.75, seed=1))[0] for p in range(200)]
    assert 1100 < max(drawn) < 3000


def test_min_tokens_bans_stop_ids_until_enough_were_generated():
    logits = logits_of(1)
    best = int(logits.argmax())
    banned = {"temperature": 0.0, "stop_ids": (best, 5000), "min_tokens": 3}
    assert draw(logits, pick(position=6, prompt_tokens=4, **banned)) != [best]  # two were generated
    assert draw(logits, pick(position=7, prompt_tokens=4, **banned)) == [best]


def test_a_row_draws_the_same_in_any_company():
    logits = logits_of(2, rows=7)
    picks = [pick(position=20 + i, seed=i, top_p=0.9 if i % 2 else 1.0, min_p=0.01 * i) for i in range(7)]
    alone = [draw(logits[i : i + 1], picks[i])[0] for i in range(7)]
    assert draw(logits, *picks) == alone
    assert draw(logits.flip(0), *reversed(picks)) == alone[::-1]
    assert len(set(alone)) > 1


def test_logprobs_are_those_of_the_raw_logits():
    logits = logits_of(3, rows=3)
    picks = [pick(logprobs=2, temperature=0.5, logit_bias=((3, 50.0),)), pick(), pick(logprobs=0, temperature=0.0)]
    told = settle(sample(logits, picks))
    expected = logits.log_softmax(-1)
    assert told.token[0] == 3
    np.testing.assert_array_equal(told.logprobs.chosen, [expected[0, 3], np.nan, expected[2].max()])
    np.testing.assert_array_equal(told.logprobs.top[0], expected[0].topk(2).values)
    np.testing.assert_array_equal(told.logprobs.top_ids, [expected[0].topk(2).indices.tolist(), [-1, -1], [-1, -1]])
    assert np.isnan(told.logprobs.top[1:]).all()
    assert settle(sample(logits[:1], [pick()])).logprobs is None


HISTORY = (5, 5, 6, 900, 6, 7, 7, 7, 1002)
EVERYTHING = {
    "top_k": 700, "top_p": 0.9, "min_p": 0.001, "presence_penalty": 1.5, "frequency_penalty": 0.4, "logprobs": 20,
    "repetition_penalty": 1.3, "logit_bias": ((5, 6.0), (17, -100.0)), "min_tokens": 9, "stop_ids": (3,), "seed": 3,
}  # fmt: skip
MANY_WAYS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 20},
    {"top_p": 0.9},
    {"top_k": 40, "min_p": 0.1},
    EVERYTHING,
    EVERYTHING | {"temperature": 0.0},
]


def broken_rows() -> dict[str, torch.Tensor]:
    """Of NaN and infinities: one, all, and everything at once."""
    rows = {}
    for name, number in (("nan", math.nan), ("inf", math.inf)):
        for share, ids in (("one", slice(17, 18)), ("many", slice(0, None, 2)), ("all", slice(None))):
            rows[f"{share} {name}"] = logits_of(4)
            rows[f"{share} {name}"][0, ids] = number
    rows["both infinities"] = logits_of(5)
    rows["both infinities"][0, :2] = torch.tensor([math.inf, -math.inf])
    rows["nothing but minus infinity"] = torch.full((1, VOCAB), -math.inf)
    return rows


@pytest.mark.parametrize("params", MANY_WAYS, ids=str)
@pytest.mark.parametrize("name", broken_rows())
def test_a_row_that_is_no_numbers_has_a_fault_and_leaves_its_neighbours_alone(name, params):
    logits = logits_of(8, rows=3)
    picks = [pick(history=HISTORY, **params) for _ in range(3)]
    sound = settle(sample(logits, picks))
    logits[1] = broken_rows()[name]
    mixed = settle(sample(logits, picks))
    assert mixed.fault.tolist() == [ROW_FINE, ROW_NOT_FINITE, ROW_FINE] and mixed.token[1] == 0
    assert mixed.token[[0, 2]].tolist() == sound.token[[0, 2]].tolist() and not sound.fault.any()
    if sound.logprobs is not None:
        for column in ("chosen", "top_ids", "top"):
            np.testing.assert_array_equal(getattr(mixed.logprobs, column)[::2], getattr(sound.logprobs, column)[::2])
        assert ((mixed.logprobs.top_ids >= 0) & (mixed.logprobs.top_ids < VOCAB)).all()


@pytest.mark.parametrize("params", MANY_WAYS, ids=str)
def test_finite_rows_are_never_called_broken(params):
    """Their sum may overflow, and ids may be barred by minus infinity: those are not drawn, and all is well."""
    huge, barred = torch.full((1, VOCAB), 3e38), logits_of(6)
    huge[0, ::3] = -3e38
    barred[0, ::2] = -math.inf
    told = settle(sample(torch.cat((huge, barred)), [pick(history=HISTORY, **params)] * 2))
    assert told.fault.tolist() == [ROW_FINE] * 2
    assert told.token[0] % 3 and told.token[1] % 2
    if told.logprobs is not None:
        assert not np.isnan(told.logprobs.chosen).any() and not np.isnan(told.logprobs.top).any()


LIMIT = 1.7976931348623157e308
TEMPERATURES = (5e-324, 1e-45, 1e-40, 1e-38, 1e-12, TEMPERATURE_MIN, 1.01e-9, 1e-6, 0.3, 1.0, 2.0, 100.0, 1e39, LIMIT)
MASKS = (
    {}, {"top_p": 5e-324}, {"top_p": 1e-6}, {"top_p": math.nextafter(1.0, 0.0)}, {"min_p": 5e-324}, {"min_p": 1.0},
    {"top_k": 1}, {"top_k": VOCAB - 1, "top_p": 1e-45, "min_p": 1e-310}, {"top_k": 5, "top_p": 0.999999999},
)  # fmt: skip
EDITS = (
    {}, {"repetition_penalty": 0.01}, {"repetition_penalty": 10.0}, {"repetition_penalty": 5e-324},
    {"repetition_penalty": LIMIT}, {"frequency_penalty": 2.0, "presence_penalty": -2.0}, {"frequency_penalty": LIMIT},
    {"presence_penalty": -LIMIT}, {"logit_bias": ((5, 100.0),) * 300}, {"logit_bias": ((5, -100.0), (6, 100.0)) * 300},
    {"logit_bias": ((7, LIMIT), (8, -LIMIT))},
)  # fmt: skip


def kinds_of_logits() -> dict[str, torch.Tensor]:
    plain = logits_of(9)
    barred, alone, flat = plain.clone(), torch.full((1, VOCAB), -math.inf), torch.zeros(1, VOCAB)
    barred[0, ::2] = -math.inf
    alone[0, 11] = -3e38
    return {
        "plain": plain, "large": plain * 1e30, "largest": plain.sign() * 3.4e38, "denormal": plain * 1e-42,
        "flat": flat, "barred": barred, "one left": alone,
    }  # fmt: skip


LOGITS = kinds_of_logits()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(LOGITS)),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(MASKS),
    st.sampled_from(EDITS),
    st.integers(0, 3),
)
def test_any_accepted_number_is_safe_in_float32(kind, temperature, masks, edits, seed):
    logits, params = LOGITS[kind], {**masks, **edits, "logprobs": 3, "seed": seed}
    one = pick(history=HISTORY, temperature=temperature, **params)
    told = settle(sample(logits, [one]))
    (token,) = told.token.tolist()
    assert told.fault.tolist() == [ROW_FINE] and 0 <= token < VOCAB and logits[0, token] > -math.inf
    assert not np.isnan(told.logprobs.chosen).any() and not np.isnan(told.logprobs.top).any()
    if temperature < TEMPERATURE_MIN:
        assert draw(logits, pick(history=HISTORY, temperature=0.0, **params)) == [token]
        return
    values, _ = _narrowed(_tempered(_edited(logits[0], one), temperature), one.params)
    assert not values.isnan().any() and values.max() == 0.0


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-12, 0.99e-9, TEMPERATURE_MIN, 1.01e-9])
def test_a_temperature_around_the_bound_chooses_the_best(temperature):
    """From both sides: crossing it changes no answer, but among ids that are equal."""
    for seed in range(20):
        logits = logits_of(seed)
        best = int(logits.argmax())
        logits[0, (best + 1) % VOCAB] = logits.max()
        logits[0, (best + 2) % VOCAB] = float(np.nextafter(np.float32(logits.max()), np.float32(0.0)))
        tied = {best, (best + 1) % VOCAB} if temperature >= TEMPERATURE_MIN else {min(best, (best + 1) % VOCAB)}
        assert set(draw(logits, pick(temperature=temperature, seed=seed))) <= tied


def test_penalties_need_their_history():
    with pytest.raises(ValueError, match="need 9 ids"):
        draw(logits_of(5), pick(history=(1, 2), presence_penalty=1.0))


SEEDED = SamplingParams(temperature=1.0, top_p=0.97, seed=2**64 - 5, frequency_penalty=0.5, repetition_penalty=1.1)


def test_seeded_rows_batched_equal_alone_and_replayed(untied):
    """Sixteen rows of one prompt at once, alone, and replayed on another split from half-way: the same tokens."""
    line, ids = Pipeline(untied, (2,)), prompt(11, 6)
    alone = Pipeline(untied).generate(Row(list(ids), list(range(10)), SEEDED), 24)
    other = SamplingParams(seed=1, min_p=0.01)
    rows = [Row(list(ids), [20, 3, 21, 5, 22, 6, 23, 7], SEEDED), Row(prompt(12, 9), list(range(40, 52)), other)]
    for _ in range(24):
        line.run(*((row, len(row.ids) - row.done) for row in rows))
    assert rows[0].ids[6:] == alone
    replay = Row([*ids, *alone[:13]], list(range(10)), SEEDED, prompt_tokens=6)
    assert Pipeline(untied, (1, 3)).generate(replay, 11, chunk=5) == alone[13:]
    assert len(set(alone)) > 4
