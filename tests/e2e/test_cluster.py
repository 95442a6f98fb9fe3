"""Real processes, real torch, real signals, the official client: what a person would see."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import httpx2
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.e2e.cluster import RunningCluster, running_cluster

TOKENS = 64
LENGTHS = (1, 2, 5, 9, 17, 33, 40, 64)
MARGIN = 1e-3  # between the best and the second logit: below it two correct programs may differ


def save_model(directory: Path, *, tied: bool, seed: int = 5) -> LlamaForCausalLM:
    """A random Llama: grouped-query heads, sharded files, a vocabulary that is no multiple of 8."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1003,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=1002,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory, max_shard_size="450KB")
    assert len(list(directory.glob("*.safetensors"))) >= 3
    return model


@attrs.frozen
class Served:
    """A model directory, prompts of different lengths, and transformers' own greedy answers to them."""

    directory: Path
    prompts: tuple[list[int], ...]
    answers: list[str]


def greedy(model: LlamaForCausalLM, prompt: list[int]) -> list[int] | None:
    """transformers' own greedy answer; None when one of its steps is a near tie."""
    told = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    top = torch.cat(told.logits).topk(2).values
    if float((top[:, 0] - top[:, 1]).min()) <= MARGIN:
        return None
    ids: list[int] = told.sequences[0, len(prompt) :].tolist()
    return ids


def served(directory: Path, *, tied: bool, lengths: tuple[int, ...] = LENGTHS) -> Served:
    """A model with its answers: for each length the first prompt without a near tie."""
    llama = save_model(directory, tied=tied)
    byte_tokenizer(directory, 1003)
    prompts: list[list[int]] = []
    answers: list[str] = []
    for length in lengths:
        for first in range(3, 60):
            prompt = [first + 7 * i for i in range(length)]
            answer = greedy(llama, prompt)
            if answer is not None:
                prompts.append(prompt)
                answers.append(named(answer))
                break
    assert len(prompts) == len(lengths), "near ties everywhere: choose another seed"
    return Served(directory, tuple(prompts), answers)


def byte_tokenizer(directory: Path, vocab: int) -> None:
    """A tokenizer whose text names every id, so that text can be compared id for id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {f"<{i}>": i for i in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))


def named(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids if i != 1002)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("model"), tied=request.param)


def complete(cluster: RunningCluster, prompt: list[int], *, stream: bool) -> str:
    asked = {"model": cluster.model_id(), "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    if not stream:
        return cluster.client.completions.create(**asked).choices[0].text
    chunks = list(cluster.client.completions.create(**asked, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    return "".join(chunk.choices[0].text for chunk in chunks)


def all_at_once(cluster: RunningCluster, asked: Served, *, during: Callable[[], None] | None = None) -> list[str]:
    """All prompts as streams side by side; `during` runs once the first text has arrived."""
    answers: list[str] = [""] * len(asked.prompts)
    begun = threading.Event()

    def read(index: int) -> None:
        stream = cluster.client.completions.create(
            model=cluster.model_id(), prompt=asked.prompts[index], max_tokens=TOKENS, temperature=0, stream=True
        )
        for chunk in stream:
            answers[index] += chunk.choices[0].text
            begun.set()

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(asked.prompts))]
    for reader in readers:
        reader.start()
    if during is not None:
        assert begun.wait(60)
        during()
    for reader in readers:
        reader.join(110)
        assert not reader.is_alive(), "an answer hangs"
    return answers


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_split_answers_as_transformers_does(workers: int, model: Served, tmp_path: Path) -> None:
    directory, expected = model.directory, model.answers
    with running_cluster(tmp_path, directory, workers=workers) as cluster:
        stages = [stage for node in cluster.status()["nodes"] for stage in node["stages"]]
        assert sorted(layer for s in stages for layer in range(s["first_layer"], s["end_layer"])) == list(range(6))
        assert len(stages) == workers
        assert [complete(cluster, prompt, stream=False) for prompt in model.prompts] == expected
        assert [complete(cluster, prompt, stream=True) for prompt in model.prompts[:3]] == expected[:3]
        assert all_at_once(cluster, model) == expected


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def cluster(untied: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), untied.directory, workers=3) as running:
        yield running


def wait_whole(cluster: RunningCluster, workers: int) -> None:
    """Until the supervisor has brought everybody back and the model serves."""
    cluster.wait_until(
        f"{workers} workers and a ready model",
        60,
        lambda: (status := cluster.status())["ready"] and len(status["nodes"]) == workers,
    )


@pytest.mark.parametrize("victim", ["w0", "w1", "w2"])
def test_a_killed_worker_costs_a_pause_and_not_a_token(victim: str, cluster: RunningCluster, untied: Served) -> None:
    wait_whole(cluster, 3)
    pid = cluster.pid_of_node(victim)
    assert all_at_once(cluster, untied, during=lambda: os.kill(pid, signal.SIGKILL)) == untied.answers
    wait_whole(cluster, 3)
    assert cluster.pid_of_node(victim) != pid


def test_a_killed_coordinator_costs_a_pause_and_not_a_token(cluster: RunningCluster, untied: Served) -> None:
    wait_whole(cluster, 3)
    pid = cluster.pid_of_role("coordinator")
    assert all_at_once(cluster, untied, during=lambda: os.kill(pid, signal.SIGKILL)) == untied.answers
    assert cluster.pid_of_role("coordinator") != pid


def test_broken_input_is_told_so_with_all_four_keys(cluster: RunningCluster) -> None:
    wait_whole(cluster, 3)
    name = cluster.model_id()
    hello = [{"role": "user", "content": "hi"}]
    broken: list[tuple[str, object, int]] = [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/chat/completions", {"model": name, "messages": []}, 400),
        ("/v1/chat/completions", {"model": name, "messages": "hi"}, 400),
        ("/v1/chat/completions", {"model": name, "messages": hello}, 400),  # this model has no chat template
        ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404),
        ("/v1/completions", {"model": name, "prompt": [3] * 600}, 400),
        ("/v1/completions", {"model": name, "prompt": [5000]}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "temperature": "hot"}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "max_tokens": True}, 400),
        ("/v1/completions", {"model": name, "prompt": "<3>", "top_p": 7}, 400),
        ("/v1/completions", {"model": name}, 400),
        ("/nowhere", {}, 404),
    ]
    for path, body, status in broken:
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = httpx2.post(cluster.url + path, timeout=30.0, **sent)
        assert answer.status_code == status, (path, body, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer.text


def test_a_stopped_worker_is_fenced_and_its_words_are_not_taken(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        pid = cluster.pid_of_node("w1")
        resumed = threading.Timer(7.0, os.kill, (pid, signal.SIGCONT))  # before its parent takes it for dead

        def stop() -> None:
            os.kill(pid, signal.SIGSTOP)
            resumed.start()

        assert all_at_once(cluster, untied, during=stop) == untied.answers
        resumed.join()
        cluster.wait_until(
            "a word of the old epoch refused", 20, lambda: cluster.metric("hydra_stale_dropped_total") > 0
        )
        wait_whole(cluster, 2)
        assert cluster.pid_of_node("w1") == pid
        assert complete(cluster, untied.prompts[3], stream=True) == untied.answers[3]


def test_ctrl_c_drains_and_leaves_nothing_behind(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2) as cluster:
        family = cluster.family()
        answers = all_at_once(cluster, untied, during=lambda: cluster.process.send_signal(signal.SIGINT))
        assert answers == untied.answers
        assert cluster.process.wait(40) == 0
        assert not [pid for pid in family if psutil.pid_exists(pid)]


def test_a_parent_that_is_killed_leaves_no_process(untied: Served, tmp_path: Path) -> None:
    with running_cluster(tmp_path, untied.directory, workers=2, HYDRA_SERVER_DRAIN_TIMEOUT="5s") as cluster:
        family = [pid for pid in cluster.family() if pid != cluster.process.pid]
        cluster.process.kill()
        cluster.process.wait()
        cluster.wait_until("no process is left", 20, lambda: not [pid for pid in family if psutil.pid_exists(pid)])
