"""Checkpoints whose names lack "model.", or have more before it, hold the same model; a mixture of names is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary

LIBRARY = LocalLibrary()
INDEX = "model.safetensors.index.json"
# What replaces "model." before the body, and what stands before "lm_head".
PREFIXES = {
    "base model": ("", ""),
    "DDP": ("module.model.", "module."),
    "DDP of a base model": ("module.", "module."),
    "torch.compile": ("_orig_mod.model.", "_orig_mod."),
    "torch.compile and DDP": ("module._orig_mod.model.", "module._orig_mod."),
    "merged PEFT": ("base_model.model.model.", "base_model.model."),
    "multimodal, older": ("language_model.model.", "language_model."),
    "multimodal, newer": ("model.language_model.", ""),
    "multimodal, a body of its own": ("language_model.", ""),
    "head within": ("model.", "model."),
    "another wrapper": ("thinker.model.", "thinker."),
}


def renamed(directory, rename) -> None:
    """`rename(name)` for every tensor; None leaves it out."""
    index = directory / INDEX
    for path in directory.glob("*.safetensors"):
        tensors = {new: tensor for name, tensor in load_file(path).items() if (new := rename(name)) is not None}
        save_file(tensors, path)
    if index.exists():
        document = json.loads(index.read_text())
        placed = {rename(name): file for name, file in document["weight_map"].items()}
        index.write_text(json.dumps(document | {"weight_map": {k: v for k, v in placed.items() if k is not None}}))


def prefixed(body, head):
    return lambda name: body + name.removeprefix("model.") if name.startswith("model.") else head + name


def configure(directory, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def bytes_of(directory, tensor) -> bytes:
    return (directory / tensor.file).read_bytes()[tensor.offset :][: tensor.length]


def refused(directory) -> str:
    with pytest.raises(RefusalError) as caught:
        LIBRARY.describe(str(directory))
    assert caught.value.refusal.code == "bad_model"
    return caught.value.refusal.message


@pytest.mark.parametrize("name", ["single", "sharded", "sharded_tied", "biased"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_tensor_is_found_and_goes_where_it_belongs(saved, copy_of, name, prefix):
    original, directory = LIBRARY.describe(str(saved / name)), copy_of(name)
    body, head = PREFIXES[prefix]
    rename = prefixed(body, head)
    renamed(directory, rename)
    described = LIBRARY.describe(str(directory))
    assert [tensor.name for tensor in described.tensors] == [rename(tensor.name) for tensor in original.tensors]
    for here, there in zip(described.tensors, original.tensors, strict=True):
        assert (here.place, here.shape, here.encoding) == (there.place, there.shape, there.encoding)
        assert bytes_of(directory, here) == bytes_of(saved / name, there)
    assert described.spec.layer_sizes == original.spec.layer_sizes
    total = sum(math.prod(tensor.shape) for tensor in described.tensors)
    assert total == sum(math.prod(tensor.shape) for tensor in original.tensors)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel"])
def test_a_base_model_as_transformers_saves_and_reads_it(saved, tmp_path, architecture):
    """With tied embeddings the whole model follows from it; transformers finds the same weights."""
    whole = LlamaForCausalLM.from_pretrained(saved / "sharded_tied").eval()
    whole.model.save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == ["LlamaModel"]
    configure(tmp_path / "base", architectures=[architecture])
    described = LIBRARY.describe(str(tmp_path / "base"))
    original = {tensor.place: tensor for tensor in LIBRARY.describe(str(saved / "sharded_tied")).tensors}
    assert described.spec.architecture == "LlamaForCausalLM" and described.spec.tied
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    for tensor in described.tensors:
        assert bytes_of(tmp_path / "base", tensor) == bytes_of(saved / "sharded_tied", original[tensor.place])
        theirs = oracle.state_dict()[f"model.{tensor.name}"]
        assert bytes_of(tmp_path / "base", tensor) == theirs.contiguous().numpy().tobytes()
    with torch.inference_mode():
        ids = torch.tensor([[1, 5, 9]])
        assert torch.equal(oracle(ids).logits, whole(ids).logits)


def test_a_head_beside_a_base_model(saved, copy_of):
    """Names without the prefix and `lm_head.weight`: transformers reads that too."""
    directory = copy_of("single")
    renamed(directory, prefixed("", ""))
    oracle, whole = (LlamaForCausalLM.from_pretrained(path).state_dict() for path in (directory, saved / "single"))
    assert all(torch.equal(oracle[name], tensor) for name, tensor in whole.items())
    names = {tensor.name for tensor in LIBRARY.describe(str(directory)).tensors}
    assert {"embed_tokens.weight", "norm.weight", "lm_head.weight", "layers.4.mlp.down_proj.weight"} <= names


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel"])
def test_a_base_model_without_the_head_it_needs_is_refused_by_name(saved, tmp_path, architecture):
    LlamaModel.from_pretrained(saved / "single").save_pretrained(tmp_path / "base")
    configure(tmp_path / "base", architectures=[architecture])
    message = refused(tmp_path / "base")
    assert "'lm_head.weight'" in message and "tie_word_embeddings" in message and "base model" in message


@pytest.mark.parametrize("architecture", ["GPT2Model", "BertModel", "Model", "LlamaBidirectionalModel"])
def test_the_base_of_another_architecture_is_not_known(copy_of, architecture):
    directory = copy_of("single")
    configure(directory, architectures=[architecture])
    with pytest.raises(RefusalError) as caught:
        LIBRARY.describe(str(directory))
    assert caught.value.refusal.code == "unsupported" and architecture in caught.value.refusal.message


MIXTURES = {
    "one layer": lambda name: name.removeprefix("model.") if ".layers.3." in name else name,
    "embedding": lambda name: name.removeprefix("model.") if "embed_tokens" in name else name,
    "norm": lambda name: name.removeprefix("model.") if name == "model.norm.weight" else name,
    "one tensor": lambda name: f"module.{name}" if name == "model.layers.2.mlp.up_proj.weight" else name,
    "all layers": lambda name: f"language_{name}" if ".layers." in name else name,
    "norm alone has it": lambda name: name if name == "model.norm.weight" else name.removeprefix("model."),
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("base", ["single", "sharded"])
def test_a_mixture_of_names_is_refused_by_name(copy_of, mixture, base):
    directory = copy_of(base)
    rename = MIXTURES[mixture]
    renamed(directory, rename)
    message = refused(directory)
    assert "prefix" in message and "mixed" in message and "weight'" in message


@pytest.mark.parametrize("more", ["model.language_model.", "", "module.model."])
def test_two_models_in_one_checkpoint_are_refused_by_name(copy_of, more):
    directory = copy_of("single")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    rename = prefixed(more, more)
    save_file(tensors | {rename(name): tensor + 1 for name, tensor in tensors.items()}, path)
    assert "mixed" in refused(directory)


@pytest.mark.parametrize("prefix", ["base model", "multimodal, older", "multimodal, newer", "DDP"])
def test_other_models_beside_it_are_not_looked_at(saved, copy_of, prefix):
    """A vision tower, an adapter between, and layers that predict further tokens, as multimodal checkpoints hold."""
    directory = copy_of("single")
    renamed(directory, prefixed(*PREFIXES[prefix]))
    path = directory / "model.safetensors"
    tensors = load_file(path)
    beside = {
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(3),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": torch.ones(3),
        "multi_modal_projector.linear_1.weight": torch.ones(3),
        "mtp.layers.0.self_attn.q_proj.weight": torch.ones(3),
        "mtp.embed_tokens.weight": torch.ones(3),
    }
    save_file(tensors | beside, path)
    described = LIBRARY.describe(str(directory))
    assert {tensor.name for tensor in described.tensors} == set(tensors)


def test_what_lies_within_a_layer_is_still_accounted_for(copy_of):
    directory = copy_of("single")
    renamed(directory, prefixed("", ""))
    path = directory / "model.safetensors"
    save_file(load_file(path) | {"layers.1.self_attn.q_norm.weight": torch.ones(8)}, path)
    assert "'layers.1.self_attn.q_norm.weight', which config.json does not account for" in refused(directory)


def test_an_embedding_that_is_missing_is_named_as_this_checkpoint_would(copy_of):
    directory = copy_of("single")
    renamed(directory, lambda name: None if "embed_tokens" in name else prefixed("", "")(name))
    assert "'embed_tokens.weight'" in refused(directory)
