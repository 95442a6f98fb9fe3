"""Each library's checkpoint is described as its ranges: values and sides, the very bytes that are stored."""

import json
import math
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from hydra.protocol.model.encoding import GroupEncoding, PlainEncoding
from hydra.protocol.model.layout import part_of
from hydra.protocol.model.model_spec import Place
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_dir import describe
from tests.unit.store.quantised.checkpoints import CHECKPOINTS, KEYS, LAYERS, LINEARS

NAMES = list(CHECKPOINTS)
ROLES = {"q_proj": ("qkv", 0), "k_proj": ("qkv", 256), "v_proj": ("qkv", 256 + KEYS), "o_proj": ("out", 0)}


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_is_its_values_and_its_sides(checkpoints, name):
    described = describe(str(checkpoints[name]))
    module = "model.layers.1.self_attn.q_proj"
    ranges = [source for source in described.tensors if source.name.startswith(module)]
    assert [
        (source.place.side, source.name.removeprefix(module), source.encoding.name, source.shape) for source in ranges
    ] == list(CHECKPOINTS[name].sides)
    assert {(source.place.role, source.place.layer, source.place.first_row) for source in ranges} == {("qkv", 1, 0)}


@pytest.mark.parametrize("name", NAMES)
def test_every_range_is_a_stored_tensor_in_its_place(checkpoints, name):
    path = checkpoints[name]
    described = describe(str(path))
    raw = (path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for source in described.tensors:
        first, end = header[source.name]["data_offsets"]
        assert (source.offset, source.length) == (start + first, end - first)
        assert source.encoding.n_bytes(source.shape) == source.length
        if source.place.side != "values":
            assert list(source.shape) == header[source.name]["shape"]
    for layer in range(LAYERS):
        for module, shape in LINEARS.items():
            (values,) = [
                source
                for source in described.tensors
                if source.place.side == "values" and source.name.startswith(f"model.layers.{layer}.{module}.")
            ]
            assert values.shape == shape and isinstance(values.encoding, GroupEncoding)
    where = {source.name: source.place for source in described.tensors if source.place.side == "values"}
    for module, (role, first_row) in ROLES.items():
        (place,) = [place for tensor, place in where.items() if f"layers.0.self_attn.{module}." in tensor]
        assert place == Place(role=role, layer=0, first_row=first_row)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_the_bytes_that_are_stored_and_kept(checkpoints, name):
    described = describe(str(checkpoints[name]))
    spec = described.spec
    assert spec.stored_dtype == "float16"
    for layer, size in enumerate(spec.layer_sizes):
        ranges = [source for source in described.tensors if part_of(source) == layer]
        values = [source for source in ranges if isinstance(source.encoding, GroupEncoding)]
        assert size.stored_bytes == sum(source.length for source in ranges)
        assert size.kept_bytes == sum(source.encoding.kept_bytes(source.shape) for source in values) > 0
        assert size.numbers == 2 * 256, "only the norms are brought into the route's dtype"
    assert spec.head_size.kept_bytes == spec.embedding_size.kept_bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_has_all_sides_of_its_matrices(checkpoints, name):
    library = LocalLibrary()
    described = library.describe(str(checkpoints[name]))
    first, second = (library.slice_ranges(described, layer, layer + 1) for layer in range(LAYERS))
    assert sorted(first + second, key=repr) == sorted(described.tensors, key=repr)
    sides = [source.place.side for source in first if source.name.startswith("model.layers.0.mlp.up_proj")]
    assert sides == [side for side, *_ in CHECKPOINTS[name].sides]


@pytest.mark.parametrize("name", ["packed", "gptq", "fp8", "nf4"])
def test_sides_may_lie_in_another_file(checkpoints, tmp_path, name):
    from safetensors.torch import save_file

    path = shutil.copytree(checkpoints[name], tmp_path / "model")
    whole = describe(str(path))
    tensors = load_file(path / "model.safetensors")
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (tensor, data) in enumerate(sorted(tensors.items())):
        shards["ab"[number % 2] + ".safetensors"][tensor] = data
    for file, held in shards.items():
        save_file(held, path / file)
    (path / "model.safetensors").unlink()
    index = {"weight_map": {tensor: file for file, held in shards.items() for tensor in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    described = describe(str(path))
    assert described.spec.layer_sizes == whole.spec.layer_sizes
    assert [(source.name, source.place) for source in described.tensors] == [
        (source.name, source.place) for source in whole.tensors
    ]
    for source in described.tensors:
        with safe_open(path / source.file, "pt") as file:
            assert source.name in file.keys()  # noqa: SIM118 - it is no dict
        assert (path / source.file).stat().st_size >= source.offset + source.length


def test_a_changed_scale_is_another_model(checkpoints, tmp_path):
    path = shutil.copytree(checkpoints["packed"], tmp_path / "model")
    before = describe(str(path))
    (side,) = [s for s in before.tensors if s.name == "model.layers.0.mlp.up_proj.weight_scale"]
    raw = bytearray((path / "model.safetensors").read_bytes())
    raw[side.offset + side.length // 2] ^= 1
    (path / "model.safetensors").write_bytes(raw)
    assert describe(str(path)).spec.fingerprint != before.spec.fingerprint


def test_plain_tensors_stay_plain(checkpoints):
    described = describe(str(checkpoints["packed"]))
    plain = {source.name for source in described.tensors if isinstance(source.encoding, PlainEncoding)}
    plain = {name for name in plain if not name.endswith("_scale")}
    norms = {f"model.layers.{n}.{w}_layernorm.weight" for n in range(2) for w in ("input", "post_attention")}
    assert plain == norms | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert described.spec.head_size.numbers == math.prod((64, 256))
