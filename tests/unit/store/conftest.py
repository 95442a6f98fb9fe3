"""Model directories as transformers writes them, made once and copied to be broken; and a small Hub."""

import shutil
from pathlib import Path

import pytest

from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models.model_ref import HubAccess
from tests.fake_hub import fake_hub

SHAPES = {
    "sharded": {"tie_word_embeddings": False},
    "sharded_tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "rope_theta": 50_000.0},
    "single": {},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A directory with one model directory for each of SHAPES: GQA, an odd vocabulary, 5 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    for name, extra in SHAPES.items():
        torch.manual_seed(7)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=101,
            max_position_embeddings=64,
            **extra,
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16 if name == "biased" else torch.float32)
        model.save_pretrained(root / name, max_shard_size="10MB" if name == "single" else "70KB")
    return root


@pytest.fixture
def copy_of(saved, tmp_path):
    """`copy_of("single")`: a copy that may be broken."""
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


@pytest.fixture
def hub():
    with fake_hub() as found:
        yield found


@pytest.fixture
def library(hub, tmp_path):
    """`library(token=...)`: over one cache, without waits."""

    def make(**access):
        access = HubAccess(**({"endpoint": hub.url} | access))
        return HubLibrary(HubClient(access, tmp_path / "cache", RetryPolicy(sleep=lambda delay_s: None, tries=3)))

    return make
