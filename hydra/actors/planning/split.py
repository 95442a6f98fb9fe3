"""Which node holds which layers: pure arithmetic over memory, policy `vram`.

Every node's share is proportional to its memory less the reserve. Shares are floored, at least one layer each; left-
over layers go to the first stage, then the last, then inward. Then every share is checked against what the node can
really hold (weights in the compute dtype, embedding and head, KV, activations): layers move to where there is room,
or the plan is refused with the numbers.
"""

from collections.abc import Sequence

import attrs

from hydra.actors.planning.candidates import Candidate, Links, most_blocked, possible_orders
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.protocol.ids import NodeId
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import ModelSpec
from hydra.protocol.refusal import RefusalError, refuse

CONTEXT_MIN_TOKENS = 2048  # a plan must hold one sequence of so many tokens, or of the model's own limit if shorter
ACTIVATION_TOKENS = 512  # widest micro-batch whose intermediate tensors are counted


@attrs.frozen(kw_only=True)
class LayerShare:
    """What one node gets: layers [first_layer, end_layer), and how much memory is left for its KV pool."""

    node: NodeId
    first_layer: int
    end_layer: int
    weight_bytes: int
    kv_memory_bytes: int


@attrs.frozen(kw_only=True)
class SplitLimits:
    """What a split must satisfy, besides the model."""

    dtype: Dtype
    reserved_vram_bytes: int
    kv_memory_fraction: float  # of the memory left beside the weights
    max_model_len: int  # 0: what fits, at least CONTEXT_MIN_TOKENS or the model's own limit
    block_size: int  # tokens of one KV block: a pool has whole ones

    @classmethod
    def of(cls, settings: PlanSettings, dtype: Dtype) -> "SplitLimits":
        return cls(
            dtype=dtype,
            reserved_vram_bytes=settings.cluster.reserved_vram_bytes,
            kv_memory_fraction=settings.engine.kv_memory_fraction,
            max_model_len=settings.model.max_model_len,
            block_size=settings.engine.block_size,
        )


def reserve_of(memory_bytes: int, reserve_bytes: int) -> int:
    """The lesser of the configured reserve and half of what the node offers."""
    return min(reserve_bytes, memory_bytes // 2)


def proportional(n_layers: int, weights: Sequence[int]) -> list[int]:
    """Layer counts by policy `vram`: floors, at least one each, left-over to first, last, then inward.

    Needs 1 <= len(weights) <= n_layers. 32 layers over 9, 30, 30 are 5, 13, 14.
    """
    assert 1 <= len(weights) <= n_layers
    total = max(1, sum(weights))
    counts = [max(1, n_layers * weight // total) for weight in weights]
    inward: list[int] = []
    left, right = 0, len(weights) - 1
    while left <= right:
        inward += [left] if left == right else [left, right]
        left, right = left + 1, right - 1
    turn = 0
    while sum(counts) < n_layers:
        counts[inward[turn % len(inward)]] += 1
        turn += 1
    while sum(counts) > n_layers:  # the minimum of one was too generous: take from the largest share
        counts[max(range(len(counts)), key=lambda i: (counts[i], i))] -= 1
    return counts


def check_max_model_len(spec: ModelSpec, max_model_len: int) -> None:
    """Raises RefusalError for a setting beyond the model: it is not served with another context than was asked for."""
    if max_model_len > spec.max_positions:
        raise refuse(
            "invalid_value",
            f"max_model_len {max_model_len} is more than the model can do: its config ends at {spec.max_positions} "
            f"positions, rope scaling counted. Set it to at most {spec.max_positions}, or to 0 for as much as fits.",
            param="max_model_len",
        )


def context_needed(spec: ModelSpec, context_tokens: int) -> int:
    """Tokens of one sequence that every plan must have KV for; `context_tokens` as SplitLimits' max_model_len."""
    return context_tokens or min(CONTEXT_MIN_TOKENS, spec.max_positions)


def split_vram(
    spec: ModelSpec, candidates: Sequence[Candidate], limits: SplitLimits, blocked: Links = frozenset()
) -> tuple[LayerShare, ...]:
    """The split over these candidates, in the order that moves the fewest layers. Raises RefusalError does_not_fit.

    More candidates than layers: the roomiest are taken. If they cannot all be used, fewer are tried. No stage follows
    another that is `blocked` from sending to it (pairs: from, to).
    """
    if not candidates:
        raise refuse("no_workers", "no worker has joined; start one with `python -m hydra worker`", retry_after_s=2.0)
    chosen = list(candidates)
    if len(chosen) > spec.n_layers:
        roomiest = sorted(chosen, key=lambda candidate: -candidate.memory_bytes)[: spec.n_layers]
        chosen = [candidate for candidate in chosen if candidate in roomiest]
    refused: RefusalError | None = None
    while chosen:
        orders = possible_orders(chosen, blocked)
        if not orders:
            chosen.remove(most_blocked(chosen, blocked))
            continue
        try:
            return _split_over(spec, orders, limits)
        except RefusalError as error:
            refused = refused or error  # the figures of all candidates say most
        chosen.remove(min(reversed(chosen), key=lambda candidate: candidate.memory_bytes))
    assert refused is not None
    raise refused


def _split_over(
    spec: ModelSpec, orders: Sequence[tuple[Candidate, ...]], limits: SplitLimits
) -> tuple[LayerShare, ...]:
    """In one of these orders of the same candidates, or RefusalError."""
    best: tuple[int, tuple[LayerShare, ...]] | None = None
    refused: RefusalError | None = None
    for order in orders:
        try:
            shares = _split_in_order(spec, order, limits)
        except RefusalError as error:
            refused = refused or error
            continue
        moves = _moves(shares, order)
        if best is None or moves < best[0]:
            best = (moves, shares)
        if moves == 0:
            break
    if best is None:
        assert refused is not None
        raise refused
    return best[1]


def _moves(shares: tuple[LayerShare, ...], order: Sequence[Candidate]) -> int:
    return sum(
        len(set(range(share.first_layer, share.end_layer)) - candidate.held)
        for share, candidate in zip(shares, order, strict=True)
    )


def _split_in_order(spec: ModelSpec, order: Sequence[Candidate], limits: SplitLimits) -> tuple[LayerShare, ...]:
    weights = [
        candidate.memory_bytes - reserve_of(candidate.memory_bytes, limits.reserved_vram_bytes) for candidate in order
    ]
    counts = proportional(spec.n_layers, weights)
    for _ in range(spec.n_layers * len(order)):
        shares = _shares(spec, order, counts, limits)
        short = [i for i, share in enumerate(shares) if not _fits(spec, share, limits)]
        if not short:
            return shares
        if not _move_one(spec, shares, counts, short[0], limits):
            break
    raise refuse("does_not_fit", _numbers(spec, _shares(spec, order, counts, limits), order, limits))


def _shares(
    spec: ModelSpec, order: Sequence[Candidate], counts: list[int], limits: SplitLimits
) -> tuple[LayerShare, ...]:
    shares: list[LayerShare] = []
    first = 0
    for candidate, count in zip(order, counts, strict=True):
        end = first + count
        usable = candidate.memory_bytes - reserve_of(candidate.memory_bytes, limits.reserved_vram_bytes)
        weight_bytes = spec.slice_bytes(first, end, limits.dtype)
        left = usable - weight_bytes - _activation_bytes(spec, end == spec.n_layers)
        shares.append(
            LayerShare(
                node=candidate.node,
                first_layer=first,
                end_layer=end,
                weight_bytes=weight_bytes,
                kv_memory_bytes=int(left * limits.kv_memory_fraction),
            )
        )
        first = end
    return tuple(shares)


def _activation_bytes(spec: ModelSpec, with_head: bool) -> int:
    """float32 intermediates of the widest micro-batch in one layer, and one row of logits each."""
    return ACTIVATION_TOKENS * 4 * spec.layer_width + (64 * 4 * spec.vocab if with_head else 0)


def _kv_needed(spec: ModelSpec, share: LayerShare, limits: SplitLimits) -> int:
    blocks = -(-context_needed(spec, limits.max_model_len) // limits.block_size)
    return spec.cache_size(share.first_layer, share.end_layer, limits.dtype).row_of(blocks * limits.block_size)


def _fits(spec: ModelSpec, share: LayerShare, limits: SplitLimits) -> bool:
    return share.kv_memory_bytes >= _kv_needed(spec, share, limits)


def _move_one(
    spec: ModelSpec, shares: tuple[LayerShare, ...], counts: list[int], short: int, limits: SplitLimits
) -> bool:
    """Takes one layer from a node that is short and gives it to the one with the most room. False: nobody has any."""
    if counts[short] <= 1:
        return False
    room = [share.kv_memory_bytes - _kv_needed(spec, share, limits) for share in shares]
    roomiest = max(range(len(shares)), key=lambda i: room[i])
    if roomiest == short or room[roomiest] <= 0:
        return False
    counts[short] -= 1
    counts[roomiest] += 1
    return True


def _numbers(spec: ModelSpec, shares: tuple[LayerShare, ...], order: Sequence[Candidate], limits: SplitLimits) -> str:
    """The refusal in figures, 1 GB = 10^9 bytes."""
    needed = spec.slice_bytes(0, spec.n_layers, limits.dtype)
    lines = [
        f"{spec.architecture} with {spec.n_layers} layers in {limits.dtype} needs {needed / 1e9:.2f} GB of weights "
        f"and KV for {context_needed(spec, limits.max_model_len)} tokens"
    ]
    for share, candidate in zip(shares, order, strict=True):
        kv = _kv_needed(spec, share, limits)
        lines.append(
            f"{share.node}: layers {share.first_layer}-{share.end_layer - 1} need {share.weight_bytes / 1e9:.2f} GB "
            f"and {kv / 1e9:.2f} GB of KV; it offers {candidate.memory_bytes / 1e9:.2f} GB, of which "
            f"{reserve_of(candidate.memory_bytes, limits.reserved_vram_bytes) / 1e9:.2f} GB are kept in reserve"
        )
    return "; ".join(lines)
