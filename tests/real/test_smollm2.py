"""A model that was trained, and answers: SmolLM2-135M-Instruct in two stages beside transformers. `make test-real`."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

PACKAGES = Path(__file__).parents[2] / ".real-model"
TOKENS = 48
PROMPTS = [
    "What is the capital of France?",
    "Say hello.",
    "Name three colours.",
    "What is 2 + 2?",
    "Write one sentence about the sea.",
    "Who wrote Romeo and Juliet?",
    "Translate to French: good morning",
    "What do bees make?",
    "Give me a word that rhymes with cat.",
    "How many days has a week?",
    "What colour is the sky on a clear day?",
    "Write a haiku about rain.",
    "Explain gravity to a child.",
    "What is the opposite of hot?",
    "Tell me a joke.",
    "List the planets of the solar system.",
    "Was ist die Hauptstadt von Österreich?",
    "Answer with an emoji: are you happy? 🎉",
    "def add(a, b):\n    # finish this function",
    "Repeat after me: <b>hello</b> \\ {{ there }}",
]


@attrs.frozen
class Answer:
    text: str
    finish: str


def expected_answer(model, tokenizer, prompt: str) -> Answer:
    """transformers' own, greedy. What looks like a control token in a message is text to both."""
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    told = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    new = told[0, len(ids) :].tolist()
    ended = new[-1] == tokenizer.eos_token_id
    return Answer(tokenizer.decode(new, skip_special_tokens=True), "stop" if ended else "length")


def answer(cluster: RunningCluster, prompt: str, *, stream: bool) -> Answer:
    asked = {
        "model": cluster.model_id(),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    if not stream:
        choice = cluster.client.chat.completions.create(**asked).choices[0]
        return Answer(choice.message.content, choice.finish_reason)
    chunks = [chunk.choices[0] for chunk in cluster.client.chat.completions.create(**asked, stream=True)]
    return Answer("".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason)


def test_it_says_what_transformers_says_and_ends_where_it_should(tmp_path: Path) -> None:
    directory = tmp_path / "smollm2"
    converter = Path(__file__).with_name("convert_smollm2.py")
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, str(converter), str(directory)], check=True, env={**os.environ, "PYTHONPATH": path})
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    expected = [expected_answer(model, tokenizer, prompt) for prompt in PROMPTS]
    assert {one.finish for one in expected} == {"stop", "length"}, "some answers end, and some are cut"
    del model
    with running_cluster(tmp_path, directory, workers=2) as cluster:
        for stream in (False, True):
            assert [answer(cluster, prompt, stream=stream) for prompt in PROMPTS] == expected
