"""The split in numbers: the worked example, and what holds for any memory and any model."""

from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra.actors.planning.candidates import Candidate
from hydra.actors.planning.split import SplitLimits, context_needed, proportional, reserve_of, split_vram
from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import decoder_of, plain_decoder, plain_layer
from hydra.protocol.model.encoding import F16
from hydra.protocol.model.layer_spec import MoeSpec
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.model.part_size import stored_size
from hydra.protocol.refusal import RefusalError

GB = 10**9
VOCABULARY = stored_size(32000 * 1024, F16)
LAYER = plain_layer(n_heads=16, n_kv_heads=4, head_dim=64, intermediate=2816)


def model(n_layers, layer_numbers=100_000_000, **changes):
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        fingerprint="f",
        hidden=1024,
        vocab=32000,
        max_positions=4096,
        decoder=plain_decoder(n_layers, LAYER),
        tied=False,
        stored_dtype="float16",
        layer_sizes=(stored_size(layer_numbers, F16),) * n_layers,
        embedding_size=VOCABULARY,
        head_size=VOCABULARY,
        norm_size=stored_size(1024, F16),
        bos_id=1,
        eos_ids=(2,),
    )
    return attrs.evolve(spec, **changes)


def limits(reserve_gb=2.0, context=0):
    return SplitLimits(
        dtype="float16",
        reserved_vram_bytes=int(reserve_gb * GB),
        kv_memory_fraction=0.9,
        max_model_len=context,
        block_size=16,
    )


def candidates(*gigabytes):
    return [Candidate(node=f"n{i}", memory_bytes=int(gb * GB)) for i, gb in enumerate(gigabytes)]


def layers(shares):
    return [(share.node, share.first_layer, share.end_layer) for share in shares]


def test_the_worked_example():
    shares = split_vram(model(32), candidates(11, 32, 32), limits())
    assert layers(shares) == [("n0", 0, 5), ("n1", 5, 18), ("n2", 18, 32)]


@pytest.mark.parametrize(
    ("n_layers", "weights", "counts"),
    [
        (32, [9, 30, 30], [5, 13, 14]),
        (7, [1], [7]),
        (4, [1, 1, 1], [2, 1, 1]),
        (5, [1, 1, 1], [2, 1, 2]),
        (10, [1, 1, 1, 1], [3, 2, 2, 3]),
        (11, [1, 1, 1, 1], [3, 3, 2, 3]),
        (3, [1, 1000, 1], [1, 1, 1]),
        (6, [0, 0], [3, 3]),
    ],
)
def test_floors_then_the_ends_then_inward(n_layers, weights, counts):
    assert proportional(n_layers, weights) == counts


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=9), st.integers(0, 200))
def test_every_seat_gets_a_layer_and_every_layer_a_seat(weights, extra):
    counts = proportional(len(weights) + extra, weights)
    assert sum(counts) == len(weights) + extra and min(counts) >= 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.2, 40), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1_000_000, 400_000_000),
    st.floats(0, 3),
    st.booleans(),
)
def test_an_accepted_plan_is_whole_and_within_everybodys_memory(gigabytes, n_layers, layer_numbers, reserve, tied):
    spec = model(n_layers, layer_numbers, tied=tied, head_size=stored_size(0, F16) if tied else VOCABULARY)
    rules = limits(reserve)
    offered = candidates(*gigabytes)
    try:
        shares = split_vram(spec, offered, rules)
    except RefusalError as no:
        assert no.refusal.code == "does_not_fit" and " GB" in no.refusal.message and ": layers " in no.refusal.message
        return
    assert shares[0].first_layer == 0 and shares[-1].end_layer == n_layers
    assert all(one.end_layer == other.first_layer for one, other in pairwise(shares))
    assert all(share.first_layer < share.end_layer for share in shares)
    memory = {candidate.node: candidate.memory_bytes for candidate in offered}
    names = [share.node for share in shares]
    assert names == [name for name in memory if name in names], "not in the order of the seats"
    for share in shares:
        room = memory[share.node] - reserve_of(memory[share.node], rules.reserved_vram_bytes)
        assert share.weight_bytes == spec.slice_bytes(share.first_layer, share.end_layer, "float16")
        assert share.weight_bytes + share.kv_memory_bytes <= room
        n_own = share.end_layer - share.first_layer
        cache = spec.cache_size(share.first_layer, share.end_layer, "float16")
        assert cache.token_bytes == n_own * 2 * 4 * 64 * 2
        assert share.kv_memory_bytes >= context_needed(spec, rules.max_model_len) * cache.token_bytes


@pytest.mark.parametrize(("context", "needed"), [(16, 16), (17, 32), (100, 112), (0, 2048)])
def test_one_sequence_has_whole_blocks(context, needed):
    """As the pool is made of them: a plan that fits must not fail when it is carried out, nor be served shorter."""
    spec, rules = model(1), attrs.evolve(limits(0, context), kv_memory_fraction=1.0)
    (plenty,) = split_vram(spec, candidates(10), rules)
    least = 10 * GB - plenty.kv_memory_bytes + needed * spec.cache_size(0, 1, "float16").token_bytes
    assert split_vram(spec, [Candidate(node="n", memory_bytes=least)], rules)
    with pytest.raises(RefusalError):
        split_vram(spec, [Candidate(node="n", memory_bytes=least - 1)], rules)


def test_layers_move_from_a_seat_that_is_short_to_the_one_with_room():
    big_ends = model(
        10, 100_000_000, embedding_size=stored_size(900_000_000, F16)
    )  # 1.8 GB beside the first seat's layers
    plain = split_vram(model(10, 100_000_000), candidates(3, 4), limits(reserve_gb=0.5))
    moved = split_vram(big_ends, candidates(3, 4), limits(reserve_gb=0.5))
    assert layers(plain) == [("n0", 0, 5), ("n1", 5, 10)]
    assert moved[0].end_layer < plain[0].end_layer and moved[1].end_layer == 10


def test_a_refusal_gives_the_figures():
    with pytest.raises(RefusalError) as no:
        split_vram(model(32), candidates(3, 4), limits())
    said = no.value.refusal.message
    assert no.value.refusal.code == "does_not_fit"
    assert "n0: layers 0-" in said and "it offers 3.00 GB, of which 1.50 GB" in said
    assert "n1: layers" in said and "it offers 4.00 GB, of which 2.00 GB" in said
    assert "32 layers in float16 needs 6.53 GB" in said


def test_without_seats_there_is_nobody_to_ask():
    with pytest.raises(RefusalError) as no:
        split_vram(model(3), [], limits())
    assert no.value.refusal.code == "no_workers"


def test_more_seats_than_layers_and_the_roomiest_sit():
    shares = split_vram(model(2), candidates(3, 9, 4, 8), limits())
    assert layers(shares) == [("n1", 0, 1), ("n3", 1, 2)]


def test_a_seat_too_small_for_one_layer_stands_aside():
    shares = split_vram(model(8), candidates(8, 0.1, 8), limits())
    assert layers(shares) == [("n0", 0, 4), ("n2", 4, 8)]


def test_layers_stay_where_they_are_held():
    here = [
        Candidate(node="a", memory_bytes=10 * GB, held=frozenset(range(4, 8))),
        Candidate(node="b", memory_bytes=10 * GB, held=frozenset(range(4))),
    ]
    assert layers(split_vram(model(8), here, limits())) == [("b", 0, 4), ("a", 4, 8)]


def test_a_survivor_keeps_its_end_and_the_spare_fills_the_gap():
    here = [
        Candidate(node="spare", memory_bytes=10 * GB),
        Candidate(node="tail", memory_bytes=10 * GB, held=frozenset(range(8, 12))),
        Candidate(node="head", memory_bytes=10 * GB, held=frozenset(range(4))),
    ]
    assert layers(split_vram(model(12), here, limits())) == [("head", 0, 4), ("spare", 4, 8), ("tail", 8, 12)]


def test_join_order_wins_where_nothing_is_held():
    assert [share.node for share in split_vram(model(6), candidates(8, 32, 9), limits())] == ["n0", "n1", "n2"]


def test_each_layer_counts_its_own_cache():
    """Two layers with caches of 32 heads of 512 channels behind ten small ones: the last node needs room for them."""
    wide = attrs.evolve(LAYER, cache=PagedKvSpec(n_heads=32, head_dim=512))
    spec = model(12, decoder=decoder_of([LAYER] * 10 + [wide] * 2, LAYER.norm))
    small, large = 2 * 4 * 64 * 2, 2 * 32 * 512 * 2
    assert spec.cache_size(0, 12, "float16").token_bytes == 10 * small + 2 * large
    assert spec.cache_size(10, 12, "float32").token_bytes == 4 * large
    context = 4096 * 2
    shares = split_vram(attrs.evolve(spec, max_positions=context), candidates(5, 5), limits(context=context))
    assert layers(shares) == [("n0", 0, 6), ("n1", 6, 12)]
    tight = limits(context=0), limits(context=4096)
    for rules in tight:
        needed = context_needed(spec, rules.max_model_len)
        for share in split_vram(spec, candidates(5, 5), rules):
            own = [layer.cache.token_bytes("float16") for layer in spec.decoder.layers]
            assert share.kv_memory_bytes >= needed * sum(own[share.first_layer : share.end_layer])


def test_the_width_of_a_layer_counts_every_expert_a_token_goes_to():
    dense = model(4)
    assert dense.layer_width == 6 * 1024 + 3 * 2816
    moe = MoeSpec(n_experts=64, top_k=8, intermediate=512, activation="silu", normalised=True)
    sparse = attrs.evolve(dense, decoder=plain_decoder(4, attrs.evolve(LAYER, feed_forward=moe)))
    assert sparse.layer_width == 6 * 1024 + 64 + 8 * (2 * 1024 + 3 * 512)
    narrow = attrs.evolve(moe, top_k=1, intermediate=8)
    layers = [attrs.evolve(LAYER, feed_forward=narrow), LAYER] * 2
    mixed = attrs.evolve(dense, decoder=decoder_of(layers, LAYER.norm))
    assert mixed.layer_width == dense.layer_width
