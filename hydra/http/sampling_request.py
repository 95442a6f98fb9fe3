"""How an OpenAI request wants its tokens chosen: read once into the SamplingParams that travel to the last stage. Pure.

Promises: what is left out has the value that SamplingParams gives it, every value is in the range of the API, and every
refusal names its parameter. Refuses to know what the model's publisher would have (see SamplingParams.with_defaults),
and which answer of a request the parameters are for.
"""

import re
import secrets

from hydra.http.fields import Fields
from hydra.http.parameters import ApiKind
from hydra.http.prompts import TOKEN_IDS_END
from hydra.protocol.refusal import refuse
from hydra.protocol.sampling import TOP_P_MIN, SamplingParams

LOGPROBS_MAX, BIAS_MAX = 20, 1024
MAX_TOKENS_MAX = 1 << 30
TOKEN_ID = re.compile(r"[0-9]{1,10}")
PLAIN = SamplingParams()


def sampling_of(kind: ApiKind, fields: Fields, max_tokens: int | None) -> SamplingParams:
    """Raises RefusalError naming the parameter. Without a seed each request has one of its own."""
    return SamplingParams(
        temperature=fields.number("temperature", PLAIN.temperature, 0.0, 2.0),
        top_p=max(TOP_P_MIN, fields.number("top_p", PLAIN.top_p, 0.0, 1.0)),
        top_k=max(0, fields.integer("top_k", PLAIN.top_k, -1, 1 << 30)),
        min_p=fields.number("min_p", PLAIN.min_p, 0.0, 1.0),
        presence_penalty=fields.number("presence_penalty", PLAIN.presence_penalty, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", PLAIN.frequency_penalty, -2.0, 2.0),
        repetition_penalty=_repetition_penalty(fields),
        logit_bias=_logit_bias(fields),
        seed=fields.integer("seed", secrets.randbits(63), -(1 << 63), (1 << 63) - 1) & ((1 << 64) - 1),
        logprobs=_logprobs(kind, fields),
        min_tokens=_min_tokens(fields, max_tokens),
    )


def _repetition_penalty(fields: Fields) -> float:
    def read(name: str) -> float:
        return fields.number(name, PLAIN.repetition_penalty, 0.01, 10.0)

    return fields.either("repetition_penalty", "repeat_penalty", read) or PLAIN.repetition_penalty


def _min_tokens(fields: Fields, max_tokens: int | None) -> int:
    least = fields.integer("min_tokens", PLAIN.min_tokens, 0, MAX_TOKENS_MAX)
    if max_tokens is not None and least > max_tokens:
        message = f"min_tokens {least} is more than the {max_tokens} tokens that the answer may have"
        raise refuse("invalid_value", message, param="min_tokens")
    return least


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for token, value in fields.object_of("logit_bias", BIAS_MAX).items():
        known = TOKEN_ID.fullmatch(token) and int(token) < TOKEN_IDS_END
        if not known or type(value) not in (int, float) or not abs(value) <= 100:
            message = "logit_bias maps token ids to numbers between -100 and 100"
            raise refuse("invalid_value", message, param="logit_bias")
        pairs.append((int(token), float(value)))
    return tuple(pairs)


def _logprobs(kind: ApiKind, fields: Fields) -> int | None:
    if kind == "text":
        if fields.body.get("logprobs") is None:
            return None
        return fields.integer("logprobs", 0, 0, LOGPROBS_MAX)
    top = fields.integer("top_logprobs", 0, 0, LOGPROBS_MAX)
    asked = fields.flag("logprobs")
    if top and not asked:
        raise refuse("invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    return top if asked else None
