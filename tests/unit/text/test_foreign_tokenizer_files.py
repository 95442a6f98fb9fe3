"""A tokenizer or a template that is no such file is called what it is, not broken JSON and not a prompt."""

import gzip

import pytest

from hydra.protocol.refusal import Refusal, RefusalError
from hydra.store.models.demo_model import ensure_demo_model
from hydra.text.tokenizer_files import read_tokenizer_files

FOREIGN = {
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9085657\n", "git lfs pull"),
    "HTML page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "HF_TOKEN"),
    "empty": (b"", "Download it again"),
    "gzip": (gzip.compress(b"{}"), "Unpack"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_none_is_called_by_its_name(tmp_path, kind, file):
    directory = ensure_demo_model(tmp_path)
    content, fix = FOREIGN[kind]
    (directory / file).write_bytes(content)
    with pytest.raises(RefusalError) as caught:
        read_tokenizer_files(directory)
    refusal = caught.value.refusal
    assert refusal.code == "bad_model" and all(word in refusal.message for word in (file, kind, fix))


def test_an_error_answer_is_no_configuration(tmp_path):
    directory = ensure_demo_model(tmp_path)
    (directory / "tokenizer_config.json").write_text('{"error": "Access to model org/m is restricted."}')
    with pytest.raises(RefusalError, match="error answer of a server"):
        read_tokenizer_files(directory)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_template_that_is_none_is_not_shown_to_the_model(tmp_path, kind):
    directory = ensure_demo_model(tmp_path)
    content, fix = FOREIGN[kind]
    (directory / "chat_template.jinja").write_bytes(content)
    template = read_tokenizer_files(directory).templates["default"]
    assert isinstance(template, Refusal) and kind in template.message and fix in template.message
