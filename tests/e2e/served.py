"""A random Llama that `transformers` saved, with its own greedy answers, and how a test asks a cluster for the same."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from tests.e2e.cluster import RunningCluster

TOKENS = 64
LENGTHS = (1, 2, 5, 9, 17, 33, 40, 64)
SIZES = {
    "vocab_size": 1003,
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 1002,
}
MARGIN = 1e-3  # between the best and the second logit: below it two correct programs may differ


def save_model(directory: Path, *, tied: bool, seed: int = 5) -> LlamaForCausalLM:
    """A random Llama: grouped-query heads, sharded files, a vocabulary that is no multiple of 8."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES, intermediate_size=172, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory, max_shard_size="450KB")
    assert len(list(directory.glob("*.safetensors"))) >= 3
    return model


def save_long_rope(directory: Path, original_tokens: int) -> Phi3ForCausalLM:
    """A random Phi-3 whose rope is another one beyond `original_tokens`."""
    torch.manual_seed(5)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0, 1.1, 1.25, 1.5],
        "long_factor": [4.0, 6.0, 9.0, 17.5],
    }
    config = Phi3Config(
        **SIZES,
        intermediate_size=112,
        original_max_position_embeddings=original_tokens,
        rope_parameters=rope,
        pad_token_id=0,
    )
    model = Phi3ForCausalLM(config).eval()
    model.save_pretrained(directory)
    return model


@attrs.frozen
class Served:
    """A model directory, prompts of different lengths, and transformers' own greedy answers to them."""

    directory: Path
    prompts: tuple[list[int], ...]
    answers: list[str]


def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int] | None:
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
    return with_answers(directory, save_model(directory, tied=tied), lengths)


def with_answers(directory: Path, model: PreTrainedModel, lengths: tuple[int, ...]) -> Served:
    """The saved model with its answers: for each length the first prompt without a near tie."""
    byte_tokenizer(directory, 1003)
    prompts: list[list[int]] = []
    answers: list[str] = []
    for length in lengths:
        for first in range(3, 60):
            prompt = [first + 7 * i for i in range(length)]
            answer = greedy(model, prompt)
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


def complete(cluster: RunningCluster, prompt: list[int], *, stream: bool) -> str:
    asked = {"model": cluster.model_id(), "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    if not stream:
        return cluster.client.completions.create(**asked).choices[0].text
    chunks = list(cluster.client.completions.create(**asked, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    return "".join(chunk.choices[0].text for chunk in chunks)


def all_at_once(
    cluster: RunningCluster,
    asked: Served,
    *,
    during: Callable[[], None] | None = None,
    pauses_s: dict[str, float] | None = None,
) -> list[str]:
    """All prompts as streams side by side; `during` runs once each has brought its first text. `pauses_s` is told the
    longest time between two pieces of each answer, by its id.
    """
    answers: list[str] = [""] * len(asked.prompts)
    begun = threading.Event()

    def read(index: int) -> None:
        stream = cluster.client.completions.create(
            model=cluster.model_id(), prompt=asked.prompts[index], max_tokens=TOKENS, temperature=0, stream=True
        )
        last_s = math.inf
        for chunk in stream:
            now_s = time.monotonic()
            if pauses_s is not None:
                pauses_s[chunk.id] = max(pauses_s.get(chunk.id, 0.0), now_s - last_s)
            last_s = now_s
            answers[index] += chunk.choices[0].text
            if all(answers):
                begun.set()

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(asked.prompts))]
    for reader in readers:
        reader.start()
    if during is not None:
        assert begun.wait(60)
        assert answers != asked.answers, "they are over already"
        during()
    for reader in readers:
        reader.join(110)
        assert not reader.is_alive(), "an answer hangs"
    return answers


def wait_whole(cluster: RunningCluster, workers: int) -> None:
    """Until the supervisor has brought everybody back and the model serves."""
    cluster.wait_until(
        f"{workers} workers and a ready model",
        60,
        lambda: (status := cluster.status())["ready"] and len(status["nodes"]) == workers,
    )
