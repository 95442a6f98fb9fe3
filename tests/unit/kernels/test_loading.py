"""What a runner reads, keeps, frees and refuses."""

import gc
import shutil
import struct
import weakref

import attrs
import numpy as np
import pytest
import torch

from hydra.kernels.step.runner import Runner
from hydra.kernels.tensors import blob_of, tensor_of, to_device
from hydra.kernels.weights import staging
from hydra.protocol.blob import Blob
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import RouteId
from hydra.protocol.model.decoder_spec import plain_decoder
from hydra.protocol.model.layer_spec import MoeSpec
from hydra.protocol.model.model_spec import Place
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.protocol.model.source import Directory, Peers
from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.bench import ROUTE, Pipeline, Row, greedy, order, prompt, publish, quiet


def n_bytes(ranges) -> int:
    return sum(source.length for source in ranges)


def test_what_is_in_memory_is_served_without_its_files(untied, tmp_path):
    """Not even a header is looked at; of what is partly there the rest is named, and only that is read."""
    runner, gone = Runner("cpu"), (Peers((Endpoint("tcp://gone:1"),)),)
    whole = order(untied, 0, 3)
    assert runner.still_to_read(whole) == whole
    runner.load(whole, quiet)
    assert runner.still_to_read(attrs.evolve(whole, sources=gone)) is None
    assert runner.load(attrs.evolve(whole, sources=gone), quiet).read_bytes == 0
    rest = runner.still_to_read(order(untied, 1, 4))
    assert sorted(source.name for source in rest.tensors) == sorted(source.name for source in untied.ranges(3, 4))
    assert runner.load(rest, quiet).read_bytes == n_bytes(untied.ranges(3, 4))
    other = order(untied, 1, 4, dtype="bfloat16")
    assert runner.still_to_read(other) == other, "in another dtype it is not there"


def test_reads_its_own_bytes_and_then_only_the_difference(untied):
    runner, told = Runner("cpu"), []
    facts = runner.load(order(untied, 1, 3), lambda done, total: told.append((done, total)))
    own = n_bytes(untied.ranges(1, 3))
    assert facts.read_bytes == facts.weight_bytes == own == untied.spec.slice_bytes(1, 3, "float32")
    assert told[-1] == (own, own)
    assert facts.kv_blocks_max == (1 << 20) // (4 * 2 * 2 * 2 * 16 * 4)
    assert [held.layers for held in runner.held()] == [(1, 2)]
    moved = runner.load(order(untied, 2, 4), quiet)
    assert moved.read_bytes == n_bytes(untied.ranges(3, 4))
    assert moved.weight_bytes == n_bytes(untied.ranges(2, 4))
    assert [held.layers for held in runner.held()] == [(2, 3)]
    assert runner.load(order(untied, 2, 4), quiet).read_bytes == 0


def test_what_is_no_longer_needed_is_freed_before_the_difference_is_read(untied):
    runner = Runner("cpu")
    runner.load(order(untied, 0, 2), quiet)
    runner.activate(ROUTE, 8)
    route = runner._routes[ROUTE]
    old, pool = weakref.ref(route.slice.blocks[0]), weakref.ref(route.pool)
    del route
    alive = []

    def watch(bytes_done: int, bytes_total: int) -> None:
        alive.append((old() is not None, pool() is not None))

    gc.disable()
    try:
        runner.load(order(untied, 1, 3), watch)
    finally:
        gc.enable()
    assert set(alive) == {(False, False)}


def test_a_tied_head_is_the_embedding_loaded_once(tied):
    runner = Runner("cpu")
    facts = runner.load(order(tied, 0, 4), quiet)
    assert facts.weight_bytes == tied.spec.slice_bytes(0, 4, "float32")
    piece = runner._routes[ROUTE].slice
    assert piece.head.linear.matrix is piece.embedding.matrix
    assert Runner("cpu").load(order(tied, 2, 4), quiet).weight_bytes == tied.spec.slice_bytes(2, 4, "float32")


def test_two_routes_share_weights_and_part_ways(untied):
    runner, other = Runner("cpu"), RouteId(2)
    runner.load(order(untied, 0, 3), quiet)
    assert runner.load(order(untied, 1, 4, route=other), quiet).read_bytes == n_bytes(untied.ranges(3, 4))
    runner.drop(ROUTE)
    assert [held.layers for held in runner.held()] == [(1, 2, 3)]
    runner.drop(other)
    runner.drop(other)
    assert runner.held() == ()


def test_weights_of_an_expelled_route_serve_the_next(untied):
    line, ids = Pipeline(untied), prompt(3, 7)
    (runner,) = line.runners
    runner.free_pool(ROUTE)
    with pytest.raises(RuntimeError, match="before it was activated"):
        line.run((Row(list(ids), [0, 1, 2]), 7))
    assert runner.load(order(untied, 0, 4), quiet).read_bytes == 0
    runner.activate(ROUTE, 16)
    assert line.generate(Row(list(ids), list(range(16))), 8) == greedy(untied, ids, 8)
    runner.free_pool(ROUTE)
    assert runner.load(order(untied, 0, 2, route=RouteId(9)), quiet).read_bytes == 0
    assert [held.layers for held in runner.held()] == [(0, 1)]  # the idle route was superseded


def plain(linear):
    return linear.matrix.to_dense() if linear.matrix.is_mkldnn else linear.matrix


def test_small_chunks_and_dtype_conversion_place_every_byte(untied, monkeypatch):
    monkeypatch.setattr(staging, "HOST_CHUNK_BYTES", 1000)
    runner = Runner("cpu", dtypes=("bfloat16",))
    facts = runner.load(order(untied, 3, 4, dtype="bfloat16"), quiet)
    assert facts.read_bytes == 2 * facts.weight_bytes == n_bytes(untied.ranges(3, 4))
    piece, reference = runner._routes[ROUTE].slice, untied.reference
    layer = runner._resident.parts((untied.spec.fingerprint, "none", "bfloat16"))[3]
    attention, mlp = reference.model.layers[3].self_attn, reference.model.layers[3].mlp
    projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(plain(layer.linears["qkv"]), torch.cat(projections).bfloat16())
    assert torch.equal(
        plain(layer.linears["gate_up"]), torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).bfloat16()
    )
    assert torch.equal(plain(layer.linears["down"]), mlp.down_proj.weight.bfloat16())
    assert torch.equal(plain(piece.head.linear), reference.lm_head.weight.bfloat16())


def test_half_precision_files_run_as_float32(tmp_path):
    model = publish(tmp_path, seed=4, dtype=torch.float16, num_hidden_layers=2)
    assert model.spec.stored_dtype == "float16"
    ids = prompt(1, 6)
    tokens = Pipeline(model, (1,)).generate(Row(list(ids), list(range(8))), 8)
    model.reference.float()
    assert tokens == greedy(model, ids, 8)


def test_a_truncated_file_is_refused_by_name_and_leaves_nothing(untied, tmp_path):
    folder = shutil.copytree(untied.path, tmp_path / "cut")
    last = max(untied.ranges(2, 3), key=lambda source: (source.file, source.offset))
    with (folder / last.file).open("r+b") as file:
        file.truncate(last.offset + last.length - 1)
    runner = Runner("cpu")
    runner.load(order(untied, 1, 2), quiet)
    with pytest.raises(RefusalError) as refused:
        runner.load(order(untied, 1, 3, sources=(Directory(str(folder)),)), quiet)
    assert refused.value.refusal.code == "bad_model"
    assert last.file in str(refused.value)
    assert last.name in str(refused.value)
    assert runner.held() == ()
    assert runner.load(order(untied, 1, 3), quiet).read_bytes == n_bytes(untied.ranges(1, 3))


def test_a_norm_that_is_not_a_number_is_refused(untied, tmp_path):
    folder = shutil.copytree(untied.path, tmp_path / "nan")
    norm = next(source for source in untied.tensors if source.name == "model.layers.0.post_attention_layernorm.weight")
    with (folder / norm.file).open("r+b") as file:
        file.seek(norm.offset + 8)
        file.write(struct.pack("<f", float("nan")))
    with pytest.raises(RefusalError, match=r"layers\.0\.post_attention_layernorm\.weight holds NaN"):
        Runner("cpu").load(order(untied, 0, 1, sources=(Directory(str(folder)),)), quiet)


DOWN = "model.layers.0.mlp.down_proj.weight"


def with_down(model, **changes: object):
    return tuple(attrs.evolve(t, **changes) if t.name == DOWN else t for t in model.ranges(0, 1))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"length": 12}, "bad_model", DOWN),
        ({"shape": (112, 64)}, "bad_model", DOWN),
        ({"file": "../model.safetensors"}, "bad_model", "not a file name"),
        ({"file": "gone.safetensors"}, "bad_model", "gone.safetensors"),
        ({"place": Place(role="router", layer=0)}, "unsupported", DOWN),
        ({"place": Place(role="down")}, "bad_model", DOWN),
        ({"place": Place(role="down", layer=0, first_row=1)}, "bad_model", DOWN),
        ({"place": Place(role="down", layer=0, expert=0)}, "bad_model", DOWN),
        ({"place": Place(role="out", layer=0)}, "bad_model", DOWN),
        ({"place": Place(role="down", layer=1)}, "bad_model", "rows 0 to 63 of down in layer 0"),
    ],
)
def test_ranges_that_lie_are_refused(untied, changes, code, words):
    with pytest.raises(RefusalError, match=words) as refused:
        Runner("cpu").load(order(untied, 0, 1, tensors=with_down(untied, **changes)), quiet)
    assert refused.value.refusal.code == code


def test_a_tensor_nobody_would_use_is_refused(untied):
    place = Place(role="query_norm", layer=0)
    stranger = attrs.evolve(untied.ranges(0, 1)[0], name="model.layers.0.self_attn.q_norm.weight", place=place)
    with pytest.raises(RefusalError, match="q_norm") as refused:
        Runner("cpu").load(order(untied, 0, 1, tensors=(*untied.ranges(0, 1), stranger)), quiet)
    assert refused.value.refusal.code == "unsupported"


def test_rows_filled_twice_are_refused(untied):
    """The key projection said again, where the value's rows are missing."""
    keys = next(t for t in untied.ranges(0, 1) if t.name == "model.layers.0.self_attn.k_proj.weight")
    tensors = [t for t in untied.ranges(0, 1) if "v_proj" not in t.name]
    with pytest.raises(RefusalError, match=r"k_proj.weight overlaps"):
        Runner("cpu").load(order(untied, 0, 1, tensors=(*tensors, keys)), quiet)
    with pytest.raises(RefusalError, match="rows 96 to 127 of qkv in layer 0"):
        Runner("cpu").load(order(untied, 0, 1, tensors=tuple(tensors)), quiet)


@pytest.mark.parametrize(
    ("half", "changes"),
    [
        ("attention", {"n_kv_heads": 3}),
        ("attention", {"rope": RopeSpec(kind="default", theta=1e4, dim=18)}),
        ("attention", {"rope": RopeSpec(kind="default", theta=1e4, dim=7)}),
        ("cache", {"n_heads": 4}),
        ("cache", {"head_dim": 8}),
        ("feed_forward", {"top_k": 3}),
    ],
)
def test_a_layer_at_odds_with_itself_is_refused(untied, half, changes):
    layer = untied.spec.decoder.layer(0)
    if half == "feed_forward":
        moe = MoeSpec(n_experts=2, top_k=2, intermediate=8, activation="silu", normalised=True)
        layer = attrs.evolve(layer, feed_forward=moe)
    wrong = attrs.evolve(layer, **{half: attrs.evolve(getattr(layer, half), **changes)})
    spec = attrs.evolve(untied.spec, decoder=plain_decoder(4, wrong))
    with pytest.raises(RefusalError, match=r"spec|heads") as refused:
        Runner("cpu").load(order(untied, 0, 1, spec=spec), quiet)
    assert refused.value.refusal.code == "bad_model"


def test_dtype_and_memory_are_refused_by_name(untied):
    with pytest.raises(RefusalError, match="runs float32, not float16"):
        Runner("cpu").load(order(untied, 0, 1, dtype="float16"), quiet)
    room = untied.spec.slice_bytes(1, 3, "float32")
    tight = Runner("cpu", memory_bytes=room)
    with pytest.raises(RefusalError) as refused:
        tight.load(order(untied, 1, 4), quiet)
    assert refused.value.refusal.code == "does_not_fit"
    assert tight.load(order(untied, 1, 3), quiet).weight_bytes == room
    assert tight.offer().memory_total_bytes == room
    assert tight.offer().memory_free_bytes == 0
    assert tight.load(order(untied, 2, 3), quiet).read_bytes == 0


def test_the_offer_names_the_device():
    offer = Runner("cpu").offer()
    assert (offer.device, offer.dtypes) == ("cpu", ("float32",))
    assert 0 < offer.memory_free_bytes <= offer.memory_total_bytes


def test_idle_weights_make_room_for_another_model(untied, tied):
    room = untied.spec.slice_bytes(0, 4, "float32") + 200_000
    runner, other = Runner("cpu", memory_bytes=room), RouteId(2)
    runner.load(order(untied, 0, 4), quiet)
    runner.activate(ROUTE, 4)
    with pytest.raises(RefusalError, match="are taken"):
        runner.load(order(tied, 0, 4, route=other), quiet)
    assert [held.fingerprint for held in runner.held()] == [untied.spec.fingerprint]
    runner.free_pool(ROUTE)
    runner.load(order(tied, 0, 4, route=other), quiet)
    assert [held.fingerprint for held in runner.held()] == [tied.spec.fingerprint]


def test_read_only_columns_and_blobs_are_taken_without_a_warning():
    """Received columns are views of messages; filterwarnings turns any complaint into an error."""
    column = np.frombuffer(np.arange(3, dtype=np.int32).tobytes(), dtype=np.int32)
    assert not column.flags.writeable
    assert to_device(column, torch.device("cpu")).tolist() == [0, 1, 2]
    data = np.arange(4, dtype=np.float32).tobytes()
    tensor = tensor_of(Blob("float32", (2, 2), data))
    assert tensor.data_ptr() == np.frombuffer(data, dtype=np.uint8).ctypes.data  # the message's own memory
    back = blob_of(tensor)
    assert np.frombuffer(back.data, dtype=np.uint8).ctypes.data == tensor.data_ptr()
    half = tensor.bfloat16()
    assert torch.equal(tensor_of(blob_of(half)), half)
