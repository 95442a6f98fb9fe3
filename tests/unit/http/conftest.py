"""The demo model's words, and an app over a scripted cluster."""

from functools import partial

import pytest
import trio

from hydra.http.app import make_app
from hydra.http.encoders import Encoders
from hydra.http.shutdown import Shutdown
from hydra.protocol.model.model_spec import ModelCard
from hydra.store.models.demo_model import ensure_demo_model
from hydra.text.cache import TokenizerCache
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.fake_cluster import FakeCluster, spell


def tokenizers_of(load=ModelTokenizer.load, chat_template=None) -> TokenizerCache:
    """ModelTokenizer are read in a thread. A frontend tries them before (see test_words_trial)."""
    return TokenizerCache(partial(trio.to_thread.run_sync, load), chat_template)


async def at_once(work, *args):
    return work(*args)


def threadless(cluster, shutdown, tokenizers):
    return make_app(
        cluster,
        max_body_bytes=100_000,
        shutdown=shutdown,
        tokenizers=tokenizers,
        encoders=Encoders(run_blocking=at_once),
    )


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    return ensure_demo_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def words(directory):
    return ModelTokenizer.load(directory)


@pytest.fixture
def cluster(directory):
    card = ModelCard(
        model_id="m",
        model_path=str(directory),
        architecture="LlamaForCausalLM",
        state="ready",
        created_s=1,
        max_model_len=200,
        vocab=261,
        eos_ids=(256,),
        dtype="float32",
        total_layers=4,
    )
    return FakeCluster(card, spell("Grüße, Welt"))


@pytest.fixture
def shutdown():
    return Shutdown()


@pytest.fixture
def app(cluster, shutdown):
    return make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of())


@pytest.fixture
def quick_app(cluster, shutdown, words):
    """Whose words are there already, and which has no threads: it may live in virtual time."""
    return threadless(cluster, shutdown, tokenizers_of(lambda *_: words))
