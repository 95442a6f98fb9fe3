"""Layers that differ in everything a layer can: heads, their sizes, windows, ropes, norms, blocks and feed-forward."""

from collections.abc import Mapping
from itertools import pairwise

import attrs
import pytest
import torch

from hydra.kernels.model.slice import Slice, build_slice, forward
from hydra.kernels.weights.linear import Linear
from hydra.kernels.weights.part_weights import PartWeights, make_part_weights
from hydra.protocol.batch import Batch, OpenRow, int32
from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import decoder_of
from hydra.protocol.model.layer_spec import DenseSpec, LayerSpec, MoeSpec, NormSpec, SoftmaxAttentionSpec
from hydra.protocol.model.layout import Part, part_shapes, slice_parts
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.model.part_size import PartSize
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.protocol.sampling import GREEDY

CPU, BLOCK, N_BLOCKS, TOKENS = torch.device("cpu"), 4, 6, 19
RMS, LAYER_NORM = NormSpec(kind="rms", eps=1e-6), NormSpec(kind="layer", eps=1e-5)
MOE = MoeSpec(n_experts=4, top_k=2, intermediate=16, activation="silu", normalised=True)


def layer(n_heads: int, n_kv_heads: int, head_dim: int, dim: int, theta: float = 1e4, **changes: object) -> LayerSpec:
    heads = SoftmaxAttentionSpec(
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=RopeSpec(kind="default", theta=theta, dim=dim)
    )
    said = LayerSpec(
        attention=heads,
        feed_forward=DenseSpec(intermediate=40, activation="silu"),
        cache=PagedKvSpec(n_heads=n_kv_heads, head_dim=head_dim),
        norm=RMS,
    )
    return attrs.evolve(said, **changes)


PLAIN = layer(4, 2, 8, 8)
WIDE = layer(2, 1, 32, 8, theta=1e6, feed_forward=MOE)
WINDOW = attrs.evolve(PLAIN, attention=attrs.evolve(PLAIN.attention, window=5, qk_norm=RMS), block="sandwich")
PARALLEL = layer(
    8, 8, 4, 4, norm=LAYER_NORM, block="parallel",
    feed_forward=DenseSpec(intermediate=24, activation="gelu", gated=False, bias=True),
)  # fmt: skip
NOTHING = PartSize(0, 0)
SPEC = ModelSpec(
    architecture="Mixed", fingerprint="0" * 16, hidden=32, vocab=101, max_positions=64, tied=False,
    decoder=decoder_of([PLAIN, WIDE, WINDOW, PARALLEL, PLAIN], RMS), stored_dtype="float32",
    layer_sizes=(NOTHING,) * 5, embedding_size=NOTHING, head_size=NOTHING, norm_size=NOTHING, bos_id=None, eos_ids=(),
)  # fmt: skip


def weights(part: Part, seed: int) -> PartWeights:
    random = torch.Generator().manual_seed(seed)
    shapes = part_shapes(SPEC, part)
    return make_part_weights({role: torch.randn(size, generator=random) / 4 for role, size in shapes.items()})


PARTS = {part: weights(part, seed) for seed, part in enumerate(sorted(slice_parts(SPEC, 0, 5), key=str))}


@attrs.define(eq=False)
class Adapted:
    """A linear of a kind that nobody here knows: another one, and a product of low rank beside it."""

    base: Linear
    calls: int = 0

    @property
    def n_bytes(self) -> int:
        return self.base.n_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.base(x) + 0.0 * x.sum(-1, keepdim=True)


def adapted(part: PartWeights) -> PartWeights:
    return PartWeights(
        part.tensors,
        {role: Adapted(linear) for role, linear in part.linears.items()},
        {role: tuple(map(Adapted, linears)) for role, linears in part.experts.items()},
        part.encoded,
    )


def through(
    cuts: tuple[int, ...], lengths: tuple[int, ...], parts: Mapping[Part, PartWeights] | None = None
) -> list[int]:
    """Tokens drawn behind each chunk of one row, by slices in a line."""
    bounds = (0, *cuts, 5)
    pieces = [build_slice(SPEC, a, b, parts or PARTS, torch.float32, CPU) for a, b in pairwise(bounds)]
    pools = [piece.pool(N_BLOCKS, BLOCK) for piece in pieces]
    ids = torch.randint(0, 101, (TOKENS,), generator=torch.Generator().manual_seed(5)).tolist()
    row = OpenRow(row=0, attempt=1, params=GREEDY, blocks=[3, 0, 5, 1, 2], prompt_tokens=TOKENS, history_tokens=TOKENS)
    drawn, done = [], 0
    for length in lengths:
        batch = Batch(
            row=int32([0]), attempt=int32([1]), position=int32([done]), length=int32([length]), sample=int32([1]),
            new_blocks=int32([0]), tokens=int32(ids[done : done + length]),
        )  # fmt: skip
        hidden = None
        for piece, pool in zip(pieces, pools, strict=True):
            hidden = forward(piece, pool, batch, (row,), hidden)
        drawn.append(int(hidden.token))
        done += length
    return drawn


@pytest.mark.parametrize("cuts", [(1,), (2,), (3, 4), (1, 2, 3, 4)])
def test_every_cut_between_unlike_layers_computes_the_same(cuts):
    assert through(cuts, (7, 6, 1, 4, 1)) == through((), (7, 6, 1, 4, 1))


def test_the_way_a_row_is_chunked_does_not_matter():
    assert through((), (12, 7))[-1] == through((), (19,))[-1] == through((2,), (1,) * 19)[-1]


def test_any_linear_takes_the_place_of_another():
    """Layers call what they hold, and ask nothing of it."""
    parts = {part: adapted(weights) for part, weights in PARTS.items()}
    assert through((), (7, 6, 1), parts) == through((), (7, 6, 1))
    linears = [linear for part in parts.values() for linear in part.linears.values()]
    assert len(linears) == 20 and all(linear.calls == 3 for linear in linears)
    assert all(parts[part].n_bytes == PARTS[part].n_bytes for part in PARTS)


def whole() -> Slice:
    return build_slice(SPEC, 0, 5, PARTS, torch.float32, CPU)


def test_a_pool_takes_what_the_specs_of_its_caches_say():
    for first, end in ((0, 5), (1, 2), (3, 5)):
        pool = build_slice(SPEC, first, end, PARTS, torch.float32, CPU).pool(N_BLOCKS, BLOCK)
        assert pool.n_bytes == N_BLOCKS * BLOCK * SPEC.cache_size(first, end, "float32").token_bytes
    shapes = [cache.keys.shape[2:] for cache in whole().pool(1, BLOCK).layers]
    assert shapes == [
        (2, 8),
        (1, 32),
        (2, 8),
        (8, 4),
        (2, 8),
    ]


def test_layers_share_what_they_have_in_common():
    piece = whole()
    assert len(SPEC.decoder.kinds) == 4 and len(piece.views) == 2 and len(piece.rotaries) == 3
