"""A model whose matrices stay encoded computes what the plain model of the same numbers does, from the same ranges."""

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hydra.kernels.step.runner import Runner
from hydra.protocol.model.encoding import BF16, BLOCK_ENCODINGS, F32
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.model.part_size import total_size
from hydra.protocol.model.part_sizes import part_sizes
from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.bench import LIBRARY, Pipeline, Published, Row, order, prompt, publish, quiet

Q8_0 = BLOCK_ENCODINGS["Q8_0"]
FILE = "encoded.bin"


def q8_0(numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks of 32: a float16 scale and signed bytes; and what they stand for."""
    blocks = numbers.astype(np.float32).reshape(-1, 32)
    scales = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / np.maximum(scales.astype(np.float32), 1e-9)).clip(-127, 127).astype(np.int8)
    stored = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], 1)
    return stored.tobytes(), (codes.astype(np.float32) * scales.astype(np.float32)).reshape(numbers.shape)


def in_pairs(numbers: np.ndarray, head_dim: int) -> np.ndarray:
    """As a converter for ropes of neighbours leaves queries and keys: both halves of each head row by row."""
    heads = numbers.reshape(-1, 2, head_dim // 2, *numbers.shape[1:])
    return heads.swapaxes(1, 2).reshape(numbers.shape)


def encode(plain: Published, path: Path, *, converted: bool) -> tuple[Published, Published]:
    """(the same model with encoded matrices in one file, the plain model of exactly those numbers)."""
    path.mkdir()
    files = [load_file(file) for file in plain.path.glob("*.safetensors")]
    numbers = {name: tensor.numpy() for tensors in files for name, tensor in tensors.items()}
    ranges: list[TensorRange] = []
    with (path / FILE).open("wb") as file:
        for source in plain.tensors:
            assert source.place is not None
            values, place, encoding = numbers[source.name], source.place, Q8_0 if len(source.shape) == 2 else F32
            stored, undone = q8_0(values) if encoding is Q8_0 else (values.tobytes(), values)
            numbers[source.name] = undone
            if converted and source.name.endswith(("q_proj.weight", "k_proj.weight")):
                stored, place = q8_0(in_pairs(values, 16))[0], attrs.evolve(place, converted="interleaved")
            elif converted and encoding is F32:
                stored, place = (values + 1).tobytes(), attrs.evolve(place, converted="plus_one")
                numbers[source.name] = (values + 1) - 1
            moved = {"file": FILE, "offset": file.tell(), "length": len(stored), "encoding": encoding, "place": place}
            ranges.append(attrs.evolve(source, **moved))
            file.write(stored)
    (path / "plain").mkdir()
    undone_path = path / "plain"
    save_file({name: torch.from_numpy(one.copy()) for name, one in numbers.items()}, undone_path / "model.safetensors")
    (undone_path / "config.json").write_bytes((plain.path / "config.json").read_bytes())
    spec = attrs.evolve(plain.spec, fingerprint="encoded", **sizes_of(ranges, plain.spec.n_layers))
    described = attrs.evolve(plain.described, tensors=tuple(ranges), spec=spec)
    return Published(path, described, plain.reference), Published(
        undone_path, LIBRARY.describe(str(undone_path)), plain.reference
    )


def sizes_of(ranges: list[TensorRange], n_layers: int) -> dict[str, object]:
    sizes = part_sizes(ranges)
    ends = {f"{part}_size": sizes.get(part, total_size(())) for part in ("embedding", "head", "norm")}
    return {"layer_sizes": tuple(sizes[layer] for layer in range(n_layers)), **ends}


@pytest.fixture(scope="module", params=[(True, False), (False, True)], ids=["tied", "untied-converted"])
def both(request, tmp_path_factory) -> tuple[Published, Published]:
    tied, converted = request.param
    path = tmp_path_factory.mktemp("encoded")
    plain = publish(path / "published", intermediate_size=128, tie_word_embeddings=tied, num_hidden_layers=3)
    return encode(plain, path / "encoded", converted=converted)


@pytest.mark.parametrize("cuts", [(), (1,)], ids=["one stage", "two stages"])
def test_tokens_are_those_of_the_decoded_model(both, cuts):
    drawn = []
    for model in both:
        line = Pipeline(model, cuts, kv_blocks=64)
        rows = [Row(prompt(seed, n), list(range(32 * seed, 32 * seed + 32))) for seed, n in ((0, 5), (1, 40))]
        drawn.append([line.generate(row, 24, chunk=16) for row in rows])
    assert drawn[0] == drawn[1]


def test_the_same_with_products_in_c(both, library):
    test_tokens_are_those_of_the_decoded_model(both, (1,))


def test_a_stage_holds_and_reads_its_own_encoded_bytes(both):
    encoded, _ = both
    for first, end in ((0, 1), (1, 3), (0, 3)):
        facts = Runner("cpu").load(order(encoded, first, end), quiet)
        assert facts.read_bytes == sum(source.length for source in encoded.ranges(first, end))
        assert facts.weight_bytes == encoded.spec.slice_bytes(first, end, "float32")


def test_a_side_of_nothing_is_refused(both):
    encoded, _ = both
    source = encoded.tensors[1]
    side = attrs.evolve(source, place=attrs.evolve(source.place, side="scale"), encoding=BF16)
    lonely = attrs.evolve(side, place=attrs.evolve(side.place, first_row=1))
    for tensors, words in (((side,), "no matrix of its own"), ((lonely,), "no matrix of its own")):
        with pytest.raises(RefusalError, match=words):
            Runner("cpu").load(order(encoded, 0, 1, tensors=tensors), quiet)


def test_a_length_that_is_not_the_shape_s_is_refused_by_file_and_tensor(both):
    encoded, _ = both
    ranges = tuple(
        attrs.evolve(one, length=one.length - 34) if one.encoding is Q8_0 else one for one in encoded.ranges(0, 1)
    )
    with pytest.raises(RefusalError, match=rf"{FILE}: .* bytes of Q8_0 at"):
        Runner("cpu").load(order(encoded, 0, 1, tensors=ranges), quiet)
