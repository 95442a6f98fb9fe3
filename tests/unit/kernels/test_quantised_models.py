"""A model that is quantised while it is loaded computes what the plain model of the same codes does."""

from pathlib import Path

import attrs
import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hydra.kernels.step.runner import Runner
from hydra.kernels.tensors import TORCH_DTYPES
from hydra.kernels.weights.converted import undo
from hydra.kernels.weights.encoded.quantise import quantise
from hydra.protocol.model.encoding import F32, PlainEncoding, QuantisedEncoding, encoding_of
from hydra.protocol.model.layout import place_of
from hydra.protocol.model.model_spec import Quantize, TensorRange
from hydra.protocol.model.part_sizes import part_sizes
from hydra.protocol.model.quantised import quantised
from hydra.protocol.refusal import RefusalError
from tests.unit.kernels.bench import LIBRARY, SIZES, Pipeline, Published, Row, order, prompt, publish, quiet

FILE = "decoded.bin"
SMALL = SIZES | {"intermediate_size": 96, "num_hidden_layers": 3}


def llama(path: Path) -> Published:
    return publish(path, num_hidden_layers=3, intermediate_size=96, tie_word_embeddings=True)


def bfloat16_llama(path: Path) -> Published:
    return publish(path, num_hidden_layers=3, intermediate_size=96, dtype=torch.bfloat16)


def mixture(path: Path) -> Published:
    return saved(path, MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)))


def fused_experts(path: Path) -> Published:
    """gpt-oss: its file has the experts' matrices columns in by rows out."""
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 32}
    return saved(path, GptOssForCausalLM(GptOssConfig(**SMALL, **more, pad_token_id=0)))


def saved(path: Path, model: PreTrainedModel) -> Published:
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "experts" in name or name.endswith(("sinks", "bias")):
                tensor.normal_(0, 0.15)
    model.eval().save_pretrained(path)
    return Published(path, LIBRARY.describe(str(path)), model)


@pytest.fixture(scope="module", params=[llama, bfloat16_llama, mixture, fused_experts], ids=lambda make: make.__name__)
def full(request, tmp_path_factory) -> Published:
    torch.manual_seed(7)
    return request.param(tmp_path_factory.mktemp("quantised") / "published")


def made(full: Published, quantize: Quantize) -> Published:
    return attrs.evolve(full, described=quantised(full.described, quantize))


def numbers_of(folder: Path, source: TensorRange) -> torch.Tensor:
    stored = source.encoding.stored if isinstance(source.encoding, QuantisedEncoding) else source.encoding
    assert isinstance(stored, PlainEncoding)
    with (folder / source.file).open("rb") as file:
        file.seek(source.offset)
        raw = torch.frombuffer(bytearray(file.read(source.length)), dtype=TORCH_DTYPES[stored.dtype])
    return undo(place_of(source).converted, raw.view(source.shape), head_dim=0)


def decoded(model: Published, path: Path) -> Published:
    """The plain model of the very numbers that its codes stand for."""
    path.mkdir()
    ranges: list[TensorRange] = []
    with (path / FILE).open("wb") as file:
        for source in model.tensors:
            numbers = numbers_of(model.path, source).float()
            if isinstance(source.encoding, QuantisedEncoding):
                numbers = quantise(numbers, source.encoding.bits, name=source.name).decode(torch.float32)
            place = attrs.evolve(place_of(source), converted="")
            content = numbers.contiguous().numpy().tobytes()
            ranges.append(
                TensorRange(
                    name=source.name,
                    file=FILE,
                    offset=file.tell(),
                    length=len(content),
                    encoding=F32,
                    shape=source.shape,
                    place=place,
                )
            )
            file.write(content)
    sizes = part_sizes(ranges)
    spec = attrs.evolve(
        model.spec,
        fingerprint="decoded",
        quantize="none",
        layer_sizes=tuple(sizes[layer] for layer in range(model.spec.n_layers)),
        embedding_size=sizes["embedding"],
        head_size=sizes.get("head", model.spec.head_size),
    )
    return attrs.evolve(model, path=path, described=attrs.evolve(model.described, spec=spec, tensors=tuple(ranges)))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_tokens_are_those_of_its_codes(full, quantize, tmp_path):
    model = made(full, quantize)
    drawn = []
    for one, cuts in ((decoded(model, tmp_path / "decoded"), ()), (model, ()), (model, (1, 2))):
        line = Pipeline(one, cuts, kv_blocks=64)
        rows = [Row(prompt(seed, n), list(range(32 * seed, 32 * seed + 32))) for seed, n in ((0, 5), (1, 40))]
        drawn.append([line.generate(row, 24, chunk=16) for row in rows])
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_stage_holds_what_the_plan_counts_and_reads_what_the_file_has(full, quantize):
    model = made(full, quantize)
    for first, end in ((0, 1), (1, 3), (0, 3)):
        facts = Runner("cpu").load(order(model, first, end), quiet)
        assert facts.read_bytes == sum(source.length for source in full.ranges(first, end))
        assert facts.weight_bytes == model.spec.slice_bytes(first, end, "float32")
    assert model.spec.slice_bytes(0, 3, "float32") < 0.4 * full.spec.slice_bytes(0, 3, "float32")


def test_weights_of_one_model_in_two_forms_are_not_mixed_up(full):
    runner = Runner("cpu")
    runner.load(order(full, 0, 1), quiet)
    facts = runner.load(order(made(full, "int8"), 0, 1), quiet)
    assert facts.read_bytes == sum(source.length for source in full.ranges(0, 1))
    assert {held.quantize for held in runner.held()} == {"int8"}


def test_a_router_and_norms_stay_as_they_are(full):
    model = made(full, "int4")
    assert quantised(full.described, "none") is full.described
    bits = {
        place_of(one).role: one.encoding.bits if isinstance(one.encoding, QuantisedEncoding) else None
        for one in model.tensors
    }
    assert {role for role, of_role in bits.items() if of_role == 8} <= {"embedding", "head"}
    assert {role for role, of_role in bits.items() if of_role == 4} >= {"qkv", "out"}
    assert all(bits[role] is None for role in bits if "norm" in role or "router" in role or "bias" in role)


def test_a_quantised_model_is_not_quantised_again(full):
    with pytest.raises(RefusalError, match=r"is quantised already: .* is \w+>int8; leave quantize out"):
        quantised(made(full, "int8").described, "int4")


def test_the_names_travel():
    for stored in ("F32", "BF16", "F16"):
        for bits in (4, 8):
            encoding = encoding_of(f"{stored}>int{bits}")
            assert isinstance(encoding, QuantisedEncoding) and (encoding.stored.name, encoding.bits) == (stored, bits)
