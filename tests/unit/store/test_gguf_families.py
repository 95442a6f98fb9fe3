"""A model in a GGUF file is described as the same model in a directory, and its ranges hold the same numbers."""

import math
from pathlib import Path

import attrs
import gguf
import numpy as np
import pytest

from hydra.protocol.model.layout import part_shapes
from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.model.source import Directory, directory_of
from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary
from tests.unit.kernels.family_models import GEMMA3_ROPES, LLAMA3, LONG, MOE, SHORT, YARN, Shape, random_model, rope
from tests.unit.kernels.gguf_models import write_gguf

SHAPES = (
    Shape("llama3", "LlamaConfig", 0, {"head_dim": 24} | rope(**LLAMA3, original_max_position_embeddings=8192)),
    Shape("biased", "LlamaConfig", 0, {"attention_bias": True, "mlp_bias": True, **rope(**YARN)}),
    Shape("linear-tied", "LlamaConfig", 0, {"tie_word_embeddings": True, **rope(rope_type="linear", factor=3.0)}),
    Shape("window", "MistralConfig", 0, {"sliding_window": 7, "head_dim": 24}),
    Shape("two-of-four", "MixtralConfig", 0, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Shape("tied", "Qwen2Config", 0, {"tie_word_embeddings": True}),
    Shape("biased", "Qwen3Config", 0, {"head_dim": 32, "attention_bias": True}),
    Shape("mixed", "Qwen3MoeConfig", 0, {**MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    Shape("quarter-head", "PhiConfig", 0, rope(partial_rotary_factor=0.25)),
    Shape("longrope", "Phi3Config", 0, {"original_max_position_embeddings": 40, **rope(
        rope_type="longrope", long_factor=LONG, short_factor=SHORT, partial_rotary_factor=0.5)}),
    Shape("window", "Phi3Config", 0, {"sliding_window": 9, "tie_word_embeddings": True}),
    Shape("window", "Gemma2Config", 0, {"head_dim": 24, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    Shape("scaled", "Gemma3TextConfig", 0, {"head_dim": 16, "sliding_window": 5, "sliding_window_pattern": 3,
          "query_pre_attn_scalar": 16, "rope_parameters": GEMMA3_ROPES, "final_logit_softcapping": 20.0}),
)  # fmt: skip


def read(described: Described, tensor: TensorRange) -> np.ndarray:
    raw = (Path(directory_of(described.sources)) / tensor.file).read_bytes()
    return np.frombuffer(raw, "<f4", math.prod(tensor.shape), tensor.offset).reshape(tensor.shape)


def undone(described: Described, tensor: TensorRange) -> np.ndarray:
    """What a reader makes of the bytes, once more from the words of `Converted`."""
    array = read(described, tensor)
    match tensor.place.converted:
        case "plus_one":
            return array - 1
        case "interleaved":
            heads = array.shape[0] // described.spec.decoder.layer(tensor.place.layer).attention.head_dim
            return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array


def matrices(described: Described) -> dict[tuple[object, ...], np.ndarray]:
    """All canonical matrices, filled; every number of them exactly once."""
    filled: dict[tuple[object, ...], np.ndarray] = {}
    for tensor in described.tensors:
        place, array = tensor.place, undone(described, tensor)
        part = (
            place.layer
            if place.layer is not None
            else {"final_norm": "norm", "final_norm_bias": "norm"}.get(
                place.role, "head" if place.role.startswith("head") else "embedding"
            )
        )
        whole = filled.setdefault(
            (part, place.role), np.full(part_shapes(described.spec, part)[place.role], np.nan, np.float32)
        )
        target = whole if place.expert is None else whole[place.expert]
        rows = target[place.first_row : place.first_row + len(array)]
        assert rows.shape == array.shape and np.isnan(rows).all(), tensor.name
        rows[...] = array
    return filled


def of_all(described: Described) -> dict[str, object]:
    """What describes the model and not its files."""
    spec = attrs.asdict(described.spec, recurse=False)
    return {key: value for key, value in spec.items() if key not in ("fingerprint", "bos_id", "eos_ids")}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_gguf_file_is_the_model_it_was_converted_from(tmp_path, shape):
    reference = random_model(shape, 0.5, num_hidden_layers=3, vocab_size=67)
    reference.save_pretrained(tmp_path / "saved")
    tied = bool(reference.config.tie_word_embeddings)
    write_gguf(tmp_path / "model.gguf", tmp_path / "saved", reference.config, tied=tied)
    library = LocalLibrary(cache_dir=tmp_path / "cache")
    here, there = library.describe(str(tmp_path / "saved")), library.describe(str(tmp_path / "model.gguf"))
    assert of_all(there) == of_all(here)
    assert there.spec.eos_ids == (28,)
    assert there.sources == (Directory(str(tmp_path)),) and there.model_path == str(tmp_path / "model.gguf")
    mine, theirs = matrices(there), matrices(here)
    assert mine.keys() == theirs.keys()
    for key, matrix in mine.items():
        assert np.allclose(matrix, theirs[key], rtol=0, atol=2e-7), key  # 1 was added to norms and taken off again
        assert "norm" in key[1] or np.array_equal(matrix, theirs[key]), key


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A saved model, and its config."""
    path = tmp_path_factory.mktemp("qwen")
    reference = random_model(SHAPES[6], 0.5, num_hidden_layers=2, vocab_size=67, intermediate_size=96)
    reference.save_pretrained(path)
    return path, reference.config


def test_parts_of_a_model_are_read_as_one(tmp_path, qwen):
    """The first of them holds no tensors."""
    saved, config = qwen
    (tmp_path / "whole").mkdir()
    write_gguf(tmp_path / "whole" / "m.gguf", saved, config, tied=False)
    write_gguf(tmp_path / "m.gguf", saved, config, tied=False, split_max_tensors=9, small_first_shard=True)
    library = LocalLibrary(cache_dir=tmp_path / "cache")
    files = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert len(files) > 3
    one, several = library.describe(str(tmp_path / "whole" / "m.gguf")), library.describe(str(tmp_path / files[0]))
    assert of_all(several) == of_all(one) and several.default_id == one.default_id == "m"
    assert [stored.file for stored in several.files] == files
    assert all(
        np.array_equal(read(one, a), read(several, b)) for a, b in zip(one.tensors, several.tensors, strict=True)
    )
    assert library.describe(str(tmp_path / files[2])) == several, "any part names the model"
    (tmp_path / files[-1]).unlink()
    with pytest.raises(RefusalError, match=f"{files[0]}.*lacks its part {files[-1]}"):
        library.describe(str(tmp_path / files[0]))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_encodings_are_those_of_the_file(tmp_path, qwen, kind):
    saved, config = qwen
    number = gguf.GGMLQuantizationType[kind]
    whole = tmp_path / "f32.gguf"
    write_gguf(whole, saved, config, tied=False)
    reader, out = gguf.GGUFReader(whole), gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    copy_keys(reader, out)
    for tensor in reader.tensors:
        array = tensor.data
        if array.ndim == 2:
            out.add_tensor(tensor.name, gguf.quants.quantize(array, number), raw_dtype=number)
        else:
            out.add_tensor(tensor.name, np.array(array))
    finish(out)
    described = LocalLibrary(cache_dir=tmp_path / "cache").describe(str(tmp_path / "m.gguf"))
    raw, decoded = (tmp_path / "m.gguf").read_bytes(), {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for tensor in described.tensors:
        assert tensor.encoding.name == (kind if len(tensor.shape) == 2 else "F32")
        assert raw[tensor.offset : tensor.offset + tensor.length] == decoded[tensor.name].data.tobytes()
    layer = described.spec.layer_sizes[0]
    assert layer.stored_bytes == sum(t.length for t in described.tensors if t.place.layer == 0)


def copy_keys(reader: gguf.GGUFReader, out: gguf.GGUFWriter) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        out.add_key_value(key, field.contents(), kind, inner)


def finish(out: gguf.GGUFWriter) -> None:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
