"""The demo model is a real one: ours to describe, and for transformers and tokenizers to load."""

import json
import threading

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydra.store.models.demo_model import BOS_ID, DEMO_NAME, DEMO_VOCAB, EOS_ID, ensure_demo_model
from hydra.store.models.model_dir import describe

TEXTS = ["hello", "Grüße, 世界! 🐍", " two  spaces\n\ttab\r\n", "don't", "\0\x7f\u200b\ufeff", ""]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return ensure_demo_model(tmp_path_factory.mktemp("cache"))


def test_it_is_described(demo):
    described = describe(str(demo))
    spec = described.spec
    assert (described.default_id, spec.n_layers, spec.hidden, spec.vocab) == (DEMO_NAME, 8, 64, DEMO_VOCAB)
    assert (spec.bos_id, spec.eos_ids, spec.stored_dtype, spec.tied) == (BOS_ID, (EOS_ID,), "float32", False)


def test_it_is_made_once_and_the_same_everywhere(demo, tmp_path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(ensure_demo_model(tmp_path / "new"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "new" / DEMO_NAME] * 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == [DEMO_NAME]  # no half-made rest
    assert describe(str(made[0])).spec == describe(str(demo)).spec
    assert (made[0] / "model.safetensors").read_bytes() == (demo / "model.safetensors").read_bytes()
    before = (made[0] / "model.safetensors").stat()
    assert (ensure_demo_model(tmp_path / "new") / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_spells_bytes(demo, text):
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_token_each(demo):
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    assert tokenizer.encode("<|bos|>a<|eos|><|user|><|assistant|><|system|>").ids == [256, 97, 257, 258, 259, 260]
    assert tokenizer.get_vocab_size() == DEMO_VOCAB


def test_it_chats_in_transformers_as_itself(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo)
    model = AutoModelForCausalLM.from_pretrained(demo)
    chat = [{"role": "system", "content": "Be ä"}, {"role": "user", "content": "Tell me"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|bos|><|system|>Be ä<|eos|><|user|>Tell me<|eos|><|assistant|>"
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    assert ids[0, :2].tolist() == [BOS_ID, 260]
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=80)
    said = bytes(token for token in out[0, ids.shape[1] :].tolist() if token < 256).decode()
    assert said.isascii() and said.isprintable()
    assert len(set(said)) > 10
    assert model.config.eos_token_id == EOS_ID == json.loads((demo / "config.json").read_text())["eos_token_id"]
