"""GGUF files in the folders of a repository: how they are meant, and that everybody finds them there."""

import shutil
from pathlib import Path

import pytest

from hydra.protocol.model.source import Directory, HubCommit
from hydra.protocol.refusal import RefusalError
from tests.unit.store.gguf_bytes import TEXT, file_bytes, small_llama
from tests.unit.store.test_gguf_places import check_fetched
from tests.unit.store.test_supply import order_of

PATHS = ("m-Q8_0.gguf", "Q4_K_M/m-Q4_K_M.gguf", "UD-Q2_K/part.gguf", "other/m-Q5_0.gguf", "other/deep/m-Q6_K.gguf")


@pytest.fixture
def commit(hub, tmp_path) -> str:
    for number, path in enumerate(PATHS):
        file = tmp_path / "published" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = small_llama()
        draft.keys.append((b"general.description", TEXT, b"x" * number))  # no two files are equal
        file.write_bytes(file_bytes(draft))
    return str(hub.add("org/m", tmp_path / "published"))


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("Q4_K_M/m-Q4_K_M.gguf", "Q4_K_M/m-Q4_K_M.gguf"),
        ("q4_k_m", "Q4_K_M/m-Q4_K_M.gguf"),
        ("Q2_K", "UD-Q2_K/part.gguf"),
        ("other/Q5_0", "other/m-Q5_0.gguf"),
        ("Q6_K", "other/deep/m-Q6_K.gguf"),
        ("m-Q8_0.gguf", "m-Q8_0.gguf"),
    ],
)
def test_a_file_is_meant_by_its_path_its_quantisation_or_its_folder(library, commit, wanted, path):
    described = library().describe(f"org/m:{wanted}")
    folder, _, file = path.rpartition("/")
    assert described.model_path == f"org/m@{commit}:{path}"
    assert described.sources == (HubCommit("org/m", commit, folder),)
    assert {stored.file for stored in described.files} == {tensor.file for tensor in described.tensors} == {file}
    assert library().describe(described.model_path) == described == library(offline=True).describe(f"org/m:{wanted}")


@pytest.mark.parametrize("wanted", ["m-Q4_K_M.gguf", "other/m-Q4_K_M.gguf", "Q3_K", "other/Q4_K_M"])
def test_a_file_of_another_folder_is_not_meant(library, commit, wanted):
    with pytest.raises(RefusalError, match=r"no GGUF file is or bears .*: .*Q4_K_M/m-Q4_K_M.gguf") as caught:
        library().describe(f"org/m:{wanted}")
    assert caught.value.refusal.code == "model_not_found"


def test_a_worker_fetches_from_the_folder(hub, library, commit, tmp_path):
    described = library().describe("org/m:Q4_K_M")
    raw = (tmp_path / "published" / PATHS[1]).read_bytes()
    check_fetched(hub, tmp_path, order_of(library(), described, 1, 2), raw)


def test_the_hugging_face_cache_serves_a_file_in_a_folder(hub, library, commit, tmp_path):
    first, path = library().describe("org/m:Q4_K_M"), PATHS[1]
    root = tmp_path / "hf" / "models--org--m"
    link, blob = root / "snapshots" / commit / path, root / "blobs" / first.files[0].tag
    link.parent.mkdir(parents=True)
    blob.parent.mkdir()
    shutil.copy(tmp_path / "published" / path, blob)
    link.symlink_to(Path("../../../blobs") / blob.name)
    shutil.rmtree(tmp_path / "cache")
    hub.bodies.clear()
    described = library(hf_cache=tmp_path / "hf").describe("org/m:Q4_K_M")
    assert described.sources == (Directory(str(link.parent)), HubCommit("org/m", commit, "Q4_K_M"))
    assert described.spec == first.spec and not hub.sent
    shutil.rmtree(tmp_path / "cache")
    alone = library(hf_cache=tmp_path / "hf", offline=True).describe(f"org/m@{commit}:Q4_K_M")
    assert (alone.spec, alone.model_path, alone.sources) == (first.spec, first.model_path, described.sources)
