"""What people have in place of a model's files: each is called by its name, with the way to the real one."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.files.foreign_file import recognise, recognise_weights
from hydra.store.hub.hub import HubClient
from hydra.store.hub.hub_library import HubLibrary
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess
from tests.fake_hub import fake_hub

WEIGHTS = "model.safetensors"
SHARD = "model-00002-of-00003.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 269060552\n"
PAGE = b"<!DOCTYPE html>\n<html class=''>\n<head><title>Hugging Face - Sign in</title></head>"


def zipped() -> bytes:
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", b"x" * 100)
        return stream.getvalue()


FOREIGN = {
    "git-lfs pointer": (POINTER, "git-lfs pointer", "git lfs pull"),
    "hawser pointer": (POINTER.replace(b"git-lfs", b"hawser"), "git-lfs pointer", "git lfs pull"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s269060552--4d7a", "git-annex", "git annex get"),
    "html": (PAGE, "HTML page", "HF_TOKEN"),
    "html in front of which is space": (b"\xef\xbb\xbf\r\n  <HTML><body>", "HTML page", "hf download"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML", "HF_TOKEN"),
    "empty": (b"", "empty (0 bytes)", "Download it again"),
    "zeros": (b"\0" * 70_000, "zeros", "Download it again"),
    "gzip": (gzip.compress(b"{}" * 100, mtime=0), "gzip", "Unpack"),
    "zip": (zipped(), "zip archive", "safetensors"),
    "xz": (lzma.compress(b"{}"), "xz", "Unpack"),
    "bzip2": (bz2.compress(b"{}"), "bzip2", "Unpack"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 100, "GGUF", "safetensors"),
    "pickle": (pickle.dumps({"model.norm.weight": [1.0]}), "pickle", "safetensors"),
}
ONLY_WEIGHTS = {
    "json error": (b'{"error":"Access to model org/m is restricted."}', "JSON text", "HF_TOKEN"),
    "text": (b"Invalid username or password.", "text", "HF_TOKEN"),
    "short text": (b"404", "text", "HF_TOKEN"),
    "text that a page cuts within a letter": (b"a" * 119 + "é".encode(), "text", "HF_TOKEN"),
}


def refused(call, *args) -> str:
    with pytest.raises(RefusalError) as caught:
        call(*args)
    assert caught.value.refusal.code == "bad_model"
    return caught.value.refusal.message


@pytest.mark.parametrize("kind", [*FOREIGN, *ONLY_WEIGHTS])
@pytest.mark.parametrize(("base", "file"), [("single", WEIGHTS), ("sharded", SHARD)])
def test_weights_that_are_none_are_called_by_their_name(copy_of, kind, base, file):
    content, name, fix = (FOREIGN | ONLY_WEIGHTS)[kind]
    directory = copy_of(base)
    (directory / file).write_bytes(content)
    message = refused(LocalLibrary().describe, str(directory))
    assert file in message and name in message and fix in message and len(message) < 500


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_small_files_that_are_none_are_called_by_their_name(copy_of, kind, file):
    content, name, fix = FOREIGN[kind]
    directory = copy_of("sharded")
    (directory / file).write_bytes(content)
    message = refused(LocalLibrary().describe, str(directory))
    assert file in message and name in message and fix in message


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "Access to model org/m is restricted and you are not in the authorized list."},
        {"error": {"message": "no", "type": "x"}},
        {"error": "not found", "status": 404, "message": "nothing here"},
    ],
    ids=str,
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_an_error_answer_is_no_configuration(copy_of, file, answer):
    directory = copy_of("sharded")
    (directory / file).write_text(json.dumps(answer))
    message = refused(LocalLibrary().describe, str(directory))
    assert file in message and "error answer of a server" in message and len(message) < 500


@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".crdownload", ".aria2"])
def test_a_download_that_has_not_ended_is_named(copy_of, suffix):
    directory = copy_of("single")
    (directory / WEIGHTS).rename(directory / f"{WEIGHTS}{suffix}")
    message = refused(LocalLibrary().describe, str(directory))
    assert f"{WEIGHTS}{suffix}" in message and "has not ended" in message


def test_a_file_that_was_cut_short_says_how_to_mend_it(copy_of):
    directory = copy_of("single")
    raw = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(raw[:-1000])
    assert "Complete the download" in refused(LocalLibrary().describe, str(directory))


@pytest.mark.parametrize("name", ["single", "sharded", "biased"])
def test_weights_are_not_taken_for_anything_else(saved, name):
    for path in (saved / name).iterdir():
        opening = path.read_bytes()[:2000]
        assert recognise(opening) is None
        assert (recognise_weights(opening) is None) == (path.suffix == ".safetensors")


def test_a_header_whose_length_begins_like_another_format(copy_of):
    """A valid file may open with any two bytes: only one that cannot be read is looked at more closely."""
    directory = copy_of("single")
    raw = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    padded = int.from_bytes(b"\x1f\x8b", "little")
    header = raw[8 : 8 + length].ljust(padded)
    (directory / WEIGHTS).write_bytes(padded.to_bytes(8, "little") + header + raw[8 + length :])
    assert (directory / WEIGHTS).read_bytes().startswith(b"\x1f\x8b")
    assert LocalLibrary().describe(str(directory)).spec.n_layers == 5


@pytest.mark.parametrize("kind", ["git-lfs pointer", "empty", "gzip", "json error", "short text"])
@pytest.mark.parametrize("ranges", [True, False])
def test_the_same_at_the_hub(saved, tmp_path, kind, ranges):
    """Whoever pushed it there did so without git-lfs, or from such a clone."""
    content, name, fix = (FOREIGN | ONLY_WEIGHTS)[kind]
    with fake_hub() as hub:
        hub.add("org/m", saved / "single")
        hub.repos["org/m"][WEIGHTS] = content
        hub.ranges = ranges
        library = HubLibrary(HubClient(HubAccess(endpoint=hub.url), tmp_path / "cache", RetryPolicy(tries=1)))
        for _ in range(2):
            message = refused(library.describe, "org/m")
            assert WEIGHTS in message and name in message and fix in message


def test_a_tar_archive_opens_with_the_name_of_a_file(copy_of):
    directory = copy_of("single")
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("model/config.json"), io.BytesIO(b""))
        (directory / WEIGHTS).write_bytes(stream.getvalue())
    assert "tar archive" in refused(LocalLibrary().describe, str(directory))
