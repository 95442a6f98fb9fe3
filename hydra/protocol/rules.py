"""What the fields of one class must be to each other, beyond the type and the limit of each (see `limits`).

Asked by the codec of everything that was read. Knows the messages, and neither bytes nor sockets.
"""

from collections.abc import Callable
from typing import Any

import attrs

from hydra.protocol.limits import ALTERNATIVES_MAX
from hydra.protocol.messages.generations import FINISHES, Open, Tokens
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.decoder_spec import DecoderSpec
from hydra.protocol.model.model_name import hub_parts
from hydra.protocol.model.model_spec import ModelSpec, StoredFile, TensorRange
from hydra.protocol.model.source import HubCommit
from hydra.protocol.sampling import DefaultSampling, SamplingParams


def _rule_tokens(message: Tokens) -> bool:
    n_rows = len(message.session)
    columns = (message.attempt, message.position, message.token, message.finish, message.cached)
    logprobs_fit = message.logprobs is None or len(message.logprobs.chosen) == n_rows
    known_finish = max(message.finish.tolist(), default=0) < len(FINISHES)
    return all(len(column) == n_rows for column in columns) and logprobs_fit and known_finish


def _rule_sampling(params: SamplingParams) -> bool:
    return (
        params.temperature >= 0.0
        and params.repetition_penalty > 0.0
        and 0.0 < params.top_p <= 1.0
        and 0.0 <= params.min_p <= 1.0
        and (params.logprobs is None or params.logprobs <= ALTERNATIVES_MAX)
    )


def _rule_default_sampling(default: DefaultSampling) -> bool:
    """The ranges of SamplingParams, where there is a value."""
    given = {name: value for name, value in attrs.asdict(default).items() if value is not None}
    return _rule_sampling(SamplingParams(**given))


def _rule_open(message: Open) -> bool:
    return message.prompt_tokens <= len(message.history)


def _rule_slice(order: LoadSlice) -> bool:
    return order.first_layer < order.end_layer <= order.spec.n_layers


def _rule_decoder(decoder: DecoderSpec) -> bool:
    """Every layer is of a kind that is there, and every kind is some layer's."""
    return set(decoder.layer_kinds) == set(range(len(decoder.kinds)))


def _rule_spec(spec: ModelSpec) -> bool:
    return len(spec.layer_sizes) == spec.n_layers


def _one_component(file: str) -> bool:
    return file not in ("", ".", "..") and not set("/\\\0") & set(file)


def _rule_file(stored: TensorRange | StoredFile) -> bool:
    return _one_component(stored.file)


def _rule_hub_commit(source: HubCommit) -> bool:
    """Its parts become part of a URL and of a path."""
    folders = source.folder.split("/") if source.folder else []
    return hub_parts(f"{source.repo}@{source.commit}") == (source.repo, source.commit) and all(
        map(_one_component, folders)
    )


def no_rule(_: Any) -> bool:
    return True


RULES: dict[type, Callable[[Any], bool]] = {
    Tokens: _rule_tokens,
    SamplingParams: _rule_sampling,
    DefaultSampling: _rule_default_sampling,
    Open: _rule_open,
    LoadSlice: _rule_slice,
    ModelSpec: _rule_spec,
    DecoderSpec: _rule_decoder,
    TensorRange: _rule_file,
    StoredFile: _rule_file,
    HubCommit: _rule_hub_commit,
}
