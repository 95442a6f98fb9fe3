"""A tokenizer follows the files that a load finds: what was read for one load serves the next if nothing changed."""

import os
import shutil

import attrs
import pytest

from hydra.protocol.refusal import RefusalError, refuse
from hydra.simulation.asgi_client import ask
from hydra.text.cache import ChatTemplateFile, TokenizerCache
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.conftest import threadless
from tests.unit.text.tokenizer_zoo import byte_level, save

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


class Reader:
    """Reads for a shelf, and counts."""

    def __init__(self):
        self.reads = 0

    async def __call__(self, path, template):
        self.reads += 1
        return ModelTokenizer.load(path, template)


@pytest.fixture
def model(tmp_path, cluster):
    """A card of the first load of a model in a directory of its own."""
    directory = save(tmp_path / "model", byte_level(), None)
    (directory / "chat_template.jinja").write_text("one{{ messages[0].content }}")
    cluster.card = attrs.evolve(
        cluster.card, model_path=str(directory), folder=str(directory), vocab=600, load="load-1-1"
    )
    return directory


def in_place(file, text):
    """The same inode, size and time: as little of a change as a writer can show."""
    before = file.stat()
    assert len(text) == before.st_size
    with file.open("r+") as handle:
        handle.write(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewritten(directory):
    in_place(directory / "chat_template.jinja", "two{{ messages[0].content }}")


def replaced(directory):
    (directory / "new").write_text("two{{ messages[0].content }}")
    (directory / "new").rename(directory / "chat_template.jinja")


def configured(directory):
    (directory / "chat_template.jinja").unlink()
    config = (directory / "tokenizer_config.json").read_text()
    template = '"chat_template": "two{{ messages[0].content }}"'
    (directory / "tokenizer_config.json").write_text(config.replace("{", "{" + template + ", ", 1))


@pytest.mark.parametrize("change", [rewritten, replaced, configured])
@pytest.mark.parametrize("seen", [True, False], ids=["the unloading was seen", "it was too quick"])
async def test_what_is_unloaded_changed_and_loaded_is_used_as_it_is_now(cluster, shutdown, model, change, seen):
    app = threadless(cluster, shutdown, TokenizerCache(Reader()))

    async def prompt():
        assert (await ask(app, "POST", "/v1/chat/completions", CHAT)).status == 200
        return ModelTokenizer.load(model).decode(cluster.requests[-1].prompt.tolist())

    assert await prompt() == "onehi"
    if seen:
        await ask(app, "POST", "/api/models/unload", {"model_id": "m"})
    change(model)
    cluster.gone, cluster.card = False, attrs.evolve(cluster.card, load="load-1-2")
    assert await prompt() == "twohi"


async def test_a_model_that_stays_loaded_keeps_its_words(cluster, model):
    """A file half written must not reach the requests of meanwhile."""
    reader = Reader()
    tokenizers, card = TokenizerCache(reader), cluster.card
    words = await tokenizers.words_of(card, (card,))
    (model / "tokenizer.json").write_text("{")
    assert await tokenizers.words_of(attrs.evolve(card, state="degraded"), (card,)) is words and reader.reads == 1


@pytest.mark.parametrize("change", [lambda model: None, shutil.rmtree], ids=["the same files", "none any more"])
async def test_a_new_coordinator_needs_no_second_reading(cluster, model, change):
    reader = Reader()
    tokenizers, card = TokenizerCache(reader), cluster.card
    words = await tokenizers.words_of(card, (card,))
    change(model)
    again = attrs.evolve(card, load="load-2-1", created_s=card.created_s + 9)
    assert await tokenizers.words_of(again, (again,)) is words and reader.reads == 1


async def test_two_models_of_one_folder_share_its_words(cluster, model):
    reader = Reader()
    tokenizers = TokenizerCache(reader)
    cards = (cluster.card, attrs.evolve(cluster.card, model_id="n", load="load-1-2"))
    for _ in range(3):
        for card in cards:
            await tokenizers.words_of(card, cards)
    assert reader.reads == 1


async def test_what_was_refused_is_tried_again_by_the_next_load(cluster, model):
    reads = []

    async def load(path, template):
        reads.append(path)
        raise refuse("bad_model", "it took too long")

    tokenizers = TokenizerCache(load)
    for name, count in (("load-1-1", 1), ("load-1-1", 1), ("load-1-2", 2)):
        card = attrs.evolve(cluster.card, load=name)
        with pytest.raises(RefusalError):
            await tokenizers.words_of(card, (card,))
        assert len(reads) == count


async def test_the_operators_own_template_is_looked_at_too(cluster, model, tmp_path):
    own, reader = tmp_path / "own.jinja", Reader()
    own.write_text("one")
    tokenizers, card = TokenizerCache(reader, ChatTemplateFile(own, str(model))), cluster.card
    await tokenizers.words_of(card, (card,))
    in_place(own, "two")
    again = attrs.evolve(card, load="load-1-2")
    await tokenizers.words_of(again, (again,))
    assert reader.reads == 2
