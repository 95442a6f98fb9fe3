"""The pocket model: a pretend transformer whose every answer proves the whole path it took.

Each layer folds its input, its own number, the position and everything its KV blocks hold for the earlier positions
into the next hidden state. Skip a layer, run it twice, read a block that belongs to somebody else or to a former
life, lose or repeat a token: the next token is another one. `pocket_reply` is the same arithmetic in one loop, and so
the oracle for every cluster shape.

One number is no number: whatever reads it becomes it too, as NaN does, and even the earlier tokens of the same chunk
do. The token FRAIL brings it about a few positions behind itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from hydra.protocol.batch import ROW_FINE, ROW_NOT_FINITE, OpenRow, Outcome, Run, int32
from hydra.protocol.blob import Blob
from hydra.protocol.ids import RouteId
from hydra.protocol.messages.membership import DeviceOffer, Held
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.decoder_spec import plain_decoder, plain_layer
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.model.model_spec import Described, ModelSpec, TensorRange
from hydra.protocol.model.part_size import stored_size
from hydra.protocol.progress import Progress
from hydra.protocol.sampling import GREEDY, SamplingParams

PocketNumbers = npt.NDArray[np.uint64]

MODEL_PATH = "/models/pocket"
MODEL_ID = "pocket"
POCKET_VOCAB = 257
POISON = POCKET_VOCAB  # whoever computes this token dies of it
FRAIL = POCKET_VOCAB + 1  # so many positions behind this token, everything is NaN
FRAIL_FOR = 12
MAX_POSITIONS = 128
_NAN, _FRAIL_KEY = np.uint64(0xFFF8_0000_0000_0000), np.uint64(0xFFF8_0000_0000_0001)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_S1, _S2 = np.uint64(31), np.uint64(27)
_POSITIONS: PocketNumbers = np.arange(4096, dtype=np.uint64)
_WEIGHTS: PocketNumbers = _POSITIONS * np.uint64(2) + np.uint64(1)
_SALTS: PocketNumbers = _POSITIONS * np.uint64(0x94D049BB133111EB)  # of a layer, or of a position


def _stir(numbers: PocketNumbers) -> PocketNumbers:
    numbers = (numbers ^ (numbers >> _S1)) * _MIX
    return numbers ^ (numbers >> _S2)


def _embed(tokens: npt.NDArray[Any], start: int) -> PocketNumbers:
    numbers = tokens.astype(np.uint64) + np.uint64(1)
    numbers = _stir(numbers * _ODD + _SALTS[start : start + len(tokens)])
    if FRAIL in tokens:
        numbers[tokens == FRAIL] = _FRAIL_KEY
    return numbers


def _layer(
    state: PocketNumbers, layer: int, start: int, slots: npt.NDArray[np.int64], pool: PocketNumbers
) -> PocketNumbers:
    """One layer for tokens at `start`, `start` + 1, ...; `slots` are the places of positions 0 .. end in its pool."""
    pool[slots[start : start + len(state)]] = _key(state, layer, start)
    return _mixed(state, layer, start, pool[slots[: start + len(state)]])


def _key(state: PocketNumbers, layer: int, start: int) -> PocketNumbers:
    return _stir(state + _SALTS[layer] + _SALTS[start : start + len(state)])


def _mixed(state: PocketNumbers, layer: int, start: int, keys: PocketNumbers) -> PocketNumbers:
    seen = np.cumsum(keys * _WEIGHTS[: len(keys)])[start:]
    return _stir((state ^ seen) + _SALTS[layer])


def _frail_layer(
    state: PocketNumbers, layer: int, start: int, slots: npt.NDArray[np.int64], pool: PocketNumbers
) -> PocketNumbers:
    """The same where some may be no numbers."""
    odd = (state == _NAN) | (state == _FRAIL_KEY)
    pool[slots[start : start + len(state)]] = np.where(odd, state, _key(state, layer, start))
    keys = pool[slots[: start + len(state)]]
    after = _mixed(state, layer, start, keys)
    if (keys == _NAN).any():
        after[:] = _NAN
    for frail in np.flatnonzero(keys == _FRAIL_KEY):
        after[max(0, frail + FRAIL_FOR - start) :] = _NAN
    return after


def _draw(state: PocketNumbers, params: SamplingParams | None) -> int | None:
    """None: there is no next token."""
    if state[-1] == _NAN:
        return None
    number = int(state[-1])
    if params is not None and params.temperature > 0:
        number ^= (params.seed * 0x9E3779B1 + params.choice * 0x85EBCA6B) & 0xFFFF_FFFF
    return (number >> 7) % POCKET_VOCAB


def pocket_reply(
    prompt: Sequence[int], n: int, layers: int, stop_ids: Sequence[int] = (), params: SamplingParams = GREEDY
) -> tuple[list[int], str]:
    """What an undisturbed model answers, and why it stops: (token ids, "stop", "length" or "not_finite")."""
    size = len(prompt) + n
    slots = np.arange(size)
    pools = [np.zeros(size, np.uint64) for _ in range(layers)]
    answer: list[int] = []
    tokens, start = np.array(prompt), 0
    through = _frail_layer if FRAIL in prompt else _layer
    while True:
        state = _embed(tokens, start)
        for layer in range(layers):
            state = through(state, layer, start, slots, pools[layer])
        token = _draw(state, params)
        if token is None:
            return answer, "not_finite"
        answer.append(token)
        if answer[-1] in stop_ids:
            return answer, "stop"
        if len(answer) == n:
            return answer, "length"
        start += len(tokens)
        tokens = np.array(answer[-1:])


def pocket_spec(n_layers: int) -> ModelSpec:
    return ModelSpec(
        architecture="PocketForCausalLM",
        fingerprint="9" * 16,
        hidden=2,
        vocab=POCKET_VOCAB + 2,  # poison and frail are tokens like any other, and never drawn
        max_positions=MAX_POSITIONS,
        decoder=plain_decoder(n_layers, plain_layer(n_heads=1, n_kv_heads=1, head_dim=2, intermediate=2)),
        tied=False,
        stored_dtype="float32",
        layer_sizes=(stored_size(25_000_000, F32),) * n_layers,  # 100 MB each, so that memory can be short
        embedding_size=stored_size(1_000, F32),
        head_size=stored_size(1_000, F32),
        norm_size=stored_size(10, F32),
        bos_id=None,
        eos_ids=(),
    )


@attrs.frozen
class PocketLibrary:
    """A library with one model."""

    n_layers: int

    def describe(self, model_path: str) -> Described:
        return Described(model_path=model_path, default_id=MODEL_ID, spec=pocket_spec(self.n_layers), tensors=())

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        return ()


@attrs.define(eq=False)
class _Slice:
    order: LoadSlice
    pools: dict[int, PocketNumbers] = attrs.field(factory=dict)


@attrs.define(eq=False)
class PocketCompute:
    """Implements ports.Compute over numbers. `die` is called when the poison token is computed."""

    memory_bytes: int
    kv_blocks_max: int
    die: Callable[[], None]
    tokens_computed: int = 0
    tokens_max: int = 0  # a step of more finds no memory; 0: any does
    damaged: bool = False  # its weights were: every state that leaves it is NaN
    _through: Callable[..., PocketNumbers] = _layer
    _slices: dict[RouteId, _Slice] = attrs.field(factory=dict)
    _garbage: int = 1

    def offer(self) -> DeviceOffer:
        return DeviceOffer(
            device="cpu",
            name="pocket",
            dtypes=("float32",),
            memory_total_bytes=self.memory_bytes,
            memory_free_bytes=self.memory_bytes,
        )

    def held(self) -> tuple[Held, ...]:
        return tuple(
            Held(
                fingerprint=held.order.spec.fingerprint,
                quantize=held.order.spec.quantize,
                dtype=held.order.dtype,
                layers=tuple(range(held.order.first_layer, held.order.end_layer)),
            )
            for held in self._slices.values()
        )

    def still_to_read(self, order: LoadSlice) -> LoadSlice | None:
        return order if self._not_held(order) else None

    def _not_held(self, order: LoadSlice) -> list[int]:
        before = self._slices.get(order.route)
        had = set(range(before.order.first_layer, before.order.end_layer)) if before else set()
        return [layer for layer in range(order.first_layer, order.end_layer) if layer not in had]

    def load(self, order: LoadSlice, progress: Progress) -> SliceFacts:
        fresh = self._not_held(order)
        self._slices[order.route] = _Slice(order)
        return SliceFacts(
            weight_bytes=order.spec.slice_bytes(order.first_layer, order.end_layer, order.dtype),
            read_bytes=sum(order.spec.layer_sizes[layer].stored_bytes for layer in fresh),
            kv_blocks_max=self.kv_blocks_max,
            load_s=0.0,
        )

    def activate(self, route: RouteId, kv_blocks: int) -> None:
        held = self._slices[route]
        size = kv_blocks * held.order.block_size
        for layer in range(held.order.first_layer, held.order.end_layer):
            self._garbage += 1  # whoever reads what nobody wrote reads something new each time
            held.pools[layer] = _stir(np.arange(self._garbage, self._garbage + size, dtype=np.uint64))

    def drop(self, route: RouteId) -> None:
        self._slices.pop(route, None)

    def free_pool(self, route: RouteId) -> None:
        if route in self._slices:
            self._slices[route].pools.clear()

    def launch(self, run: Run) -> Outcome:
        """All the work; the ticket is the outcome itself. Without memory nothing is written."""
        held, batch = self._slices[run.route], run.batch
        if self.tokens_max and batch.n_tokens > self.tokens_max:
            return Outcome(out_of_memory=True)
        order = held.order
        if POISON in batch.tokens:
            self.die()
            return Outcome()
        if FRAIL in batch.tokens:
            self._through = _frail_layer
        first, last = order.first_layer == 0, order.end_layer == order.spec.n_layers
        if first:
            assert run.hidden is None
            states = None
        else:
            assert run.hidden is not None and run.hidden.shape == (batch.n_tokens, 2)
            states = np.frombuffer(run.hidden.data, np.uint64)
        out = np.empty(batch.n_tokens, np.uint64)
        drawn: list[int | None] = []
        at = 0
        columns = zip(batch.position.tolist(), batch.length.tolist(), batch.sample.tolist(), run.rows, strict=True)
        for position, length, sample, row in columns:
            end = at + length
            state = _embed(batch.tokens[at:end], position) if states is None else states[at:end]
            slots = self._slots(row, position + length, order.block_size)
            for layer in range(order.first_layer, order.end_layer):
                state = self._through(state, layer, position, slots, held.pools[layer])
            if self.damaged:
                state[:] = _NAN
            out[at:end] = state
            if last and sample:
                drawn.append(_draw(state, row.params))
            at = end
        self.tokens_computed += batch.n_tokens
        if last:
            fault = [ROW_NOT_FINITE if token is None else ROW_FINE for token in drawn]
            return Outcome(token=int32([token or 0 for token in drawn]), fault=int32(fault))
        return Outcome(hidden=Blob("float32", (batch.n_tokens, 2), out.tobytes()))

    def collect(self, ticket: Any) -> Outcome:
        assert isinstance(ticket, Outcome)
        return ticket

    @staticmethod
    def _slots(row: OpenRow, end: int, block_size: int) -> npt.NDArray[np.int64]:
        """The places of positions 0 .. end, through the row's block table."""
        table = np.array(row.blocks, dtype=np.int64)
        return (table[:, None] * block_size + np.arange(block_size)).ravel()[:end]
