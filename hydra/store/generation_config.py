"""generation_config.json: where a model's answers begin and end, and how its publisher would have them sampled.

Promises: token ids are of the vocabulary, sampling values in the ranges a request's would have to keep. What the file
says of searches that Hydra does not run (beams, contrastive search) is none of its business.
"""

from pathlib import Path

import attrs

from hydra.protocol.sampling import DefaultSampling
from hydra.store.config_values import Values
from hydra.store.directory import read_json_file

GENERATION_CONFIG = "generation_config.json"
EOS_MAX = 64
TEMPERATURE_MAX = 100.0
PENALTY_MAX = 100.0


@attrs.frozen(kw_only=True)
class Speech:
    """What is said of generation."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    default_sampling: DefaultSampling


def read_generation(directory: Path, config: Values, vocab: int) -> Speech:
    """generation_config.json, and what of `config` (config.json) it leaves open. Raises RefusalError bad_model."""
    found = read_json_file(directory, GENERATION_CONFIG)
    said = Values(found[0] if found else {}, GENERATION_CONFIG)
    bos_ids = (said if said.has("bos_token_id") else config).ids("bos_token_id", vocab, EOS_MAX)
    return Speech(
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=(said if said.has("eos_token_id") else config).ids("eos_token_id", vocab, EOS_MAX),
        default_sampling=_default_sampling(said, vocab),
    )


def _default_sampling(said: Values, vocab: int) -> DefaultSampling:
    """Without `do_sample` the model is published as greedy, and its temperature and masks mean nothing."""
    penalty = said.number("repetition_penalty", PENALTY_MAX) if said.has("repetition_penalty") else None
    if not said.boolean("do_sample"):
        return DefaultSampling(repetition_penalty=penalty)
    return DefaultSampling(
        temperature=said.number("temperature", TEMPERATURE_MAX, zero=True) if said.has("temperature") else None,
        top_p=said.number("top_p", 1.0) if said.has("top_p") else None,
        top_k=said.integer("top_k", max(vocab, 1 << 20), least=0) if said.has("top_k") else None,
        min_p=said.number("min_p", 1.0, zero=True) if said.has("min_p") else None,
        repetition_penalty=penalty,
    )
