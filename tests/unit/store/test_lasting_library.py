"""A model of a former life whose source is gone is the model it was; any other is what its source says now."""

import os
import shutil
from pathlib import Path

import attrs
import pytest
from structlog.testing import capture_logs

from hydra.protocol.refusal import RefusalError
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models import description_cache
from hydra.store.models.description_cache import FORMAT, DescriptionCache
from hydra.store.models.lasting_library import LastingLibrary, files_are_there
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess
from tests.fake_hub import fake_hub
from tests.unit.store.conftest import SHAPES


@pytest.fixture
def life(tmp_path):
    """`life(place, ...)`: a coordinator's library, with the places that were wanted before."""

    def make(*lasting, library=None):
        cache = DescriptionCache(tmp_path / "cache" / "described")
        return LastingLibrary(library or LocalLibrary(), cache, frozenset(lasting))

    return make


def refused(library, place):
    with pytest.raises(RefusalError) as caught:
        library.describe(place)
    return caught.value.refusal.code


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def write_words(directory):
    """What a frontend that starts anew reads."""
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")


def lose_a_shard(directory):
    next(directory.glob("*.safetensors")).unlink()


def lose_the_config(directory):
    (directory / "config.json").unlink()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("harm", [shutil.rmtree, empty, lose_a_shard, lose_the_config])
def test_a_model_whose_files_are_gone_is_what_it_was(life, copy_of, name, harm):
    directory = copy_of(name)
    write_words(directory)
    place = str(directory)
    first = life().describe(place)
    small = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*.j*") if path.is_file()}
    harm(directory)
    with capture_logs() as logs:
        again = life(place).describe(place)
    assert attrs.evolve(again, folder=first.folder) == first and not files_are_there(again)
    assert len(small) >= 5 and {name: (Path(again.folder) / name).read_bytes() for name in small} == small
    assert [entry["log_level"] for entry in logs] == ["warning"] and logs[0]["model"] == place
    assert life().slice_ranges(again, 1, 3) == LocalLibrary().slice_ranges(first, 1, 3)
    assert refused(life(), place) in ("model_not_found", "bad_model"), "nobody wanted it before"
    assert refused(life(place + "x"), place) in ("model_not_found", "bad_model")


def test_what_is_there_and_says_something_else_is_believed(life, copy_of):
    directory = copy_of("single")
    place = str(directory)
    first = life().describe(place)
    with (directory / "config.json").open("a") as config:
        config.write("\n")
    second = life(place).describe(place)
    assert second.spec.fingerprint != first.spec.fingerprint
    (directory / "model.safetensors").write_bytes(b"\0" * 1000)
    assert refused(life(place), place) == "bad_model"
    shutil.rmtree(directory)
    last = life(place).describe(place)
    assert attrs.evolve(last, folder=second.folder) == second, "the last one counts"
    kept = [path for path in life().cache.folder.iterdir() if path.is_dir()]
    assert kept == [Path(last.folder)], "and of the small files only the last ones stay"


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path):
    os.truncate(path, path.stat().st_size - 5)


def of_another_version(path):
    """A former one: its fields are other ones."""
    head, body = b"hydra description %d ", path.read_bytes()
    assert body.startswith(head % FORMAT)
    path.write_bytes(body.replace(head % FORMAT, head % (FORMAT - 1), 1))


def without_its_small_files(path):
    next(path.parent.glob("*.files/config.json")).unlink()


def with_a_small_file_that_was_touched(path):
    with next(path.parent.glob("*.files/config.json")).open("a") as file:
        file.write(" ")


def of_another_place(path):
    other = DescriptionCache(path.parent)
    raw = path.read_bytes()
    (path.parent / f"{description_cache._digest(b'/elsewhere')}.description").write_bytes(raw)
    assert other.recall("/elsewhere") is None
    path.unlink()


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        cut,
        of_another_version,
        of_another_place,
        without_its_small_files,
        with_a_small_file_that_was_touched,
    ],
)
def test_a_kept_description_that_is_not_what_was_kept_counts_for_nothing(life, copy_of, harm):
    directory = copy_of("single")
    life().describe(str(directory))
    (kept,) = life().cache.folder.glob("*.description")
    shutil.rmtree(directory)
    harm(kept)
    assert refused(life(str(directory)), str(directory)) == "model_not_found"


@pytest.mark.parametrize("change", [{"tensors": 5}, {"more": 1}, {"spec": None}, {"files": [["a/b", 1, "t"]]}])
def test_a_kept_description_is_read_by_the_rules_of_the_wire(life, saved, change):
    cache, model = life().cache, LocalLibrary().describe(str(saved / "single"))
    body = description_cache.codec.pack(["/m", description_cache.codec.converter.unstructure(model) | change])
    cache.keep("/m", model)
    assert attrs.evolve(cache.recall("/m"), folder=model.folder) == model
    cache._file("/m").write_bytes(description_cache._header(body) + body)
    assert cache.recall("/m") is None


def test_only_the_latest_are_kept(life, saved, monkeypatch):
    monkeypatch.setattr(description_cache, "DESCRIPTIONS_MAX", 3)
    cache, model = life().cache, LocalLibrary().describe(str(saved / "single"))
    for number in range(5):
        cache.keep(f"/m{number}", model)
        os.utime(cache._file(f"/m{number}"), (number, number))
    assert [cache.recall(f"/m{number}") is not None for number in range(5)] == [False, False, True, True, True]
    assert len([path for path in cache.folder.iterdir() if path.is_dir()]) == 3


def test_a_small_file_that_leads_out_of_the_directory_is_not_kept(life, copy_of, tmp_path):
    directory = copy_of("single")
    (tmp_path / "secret").write_text("private")
    (directory / "tokenizer.json").symlink_to(tmp_path / "secret")
    with capture_logs() as logs:
        life().describe(str(directory))
    assert [entry["log_level"] for entry in logs] == ["warning"]
    shutil.rmtree(directory)
    assert refused(life(str(directory)), str(directory)) == "model_not_found"


def test_a_disk_that_keeps_nothing_stops_nobody(life, copy_of, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the cache")
    with capture_logs() as logs:
        assert life().describe(str(copy_of("single"))).spec.n_layers == 5
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_a_hub_model_outlives_the_hub_and_the_caches(life, saved, tmp_path):
    with fake_hub() as hub:
        commit = hub.add("org/m", saved / "single")
        policy = RetryPolicy(tries=1)

        def library():
            return HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache", policy))

        first = life(library=library()).describe("org/m")
        shutil.rmtree(tmp_path / "cache" / "hub")
        del hub.repos["org/m"]
        pinned = f"org/m@{commit}"
        assert refused(life(library=library()), pinned) == "model_not_found"
        assert life(pinned, library=library()).describe(pinned) == first
        hub.token = "secret"
        assert life("org/m", library=library()).describe("org/m") == first
    assert life(pinned, library=library()).describe(pinned) == first
