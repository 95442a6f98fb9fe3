"""An OpenAI request body as a frozen request, or a 400 that names the parameter. Pure.

Types are exact (true is no number), ranges are checked before anything is allocated. A parameter that is known and
cannot be honoured is refused; an unknown one is left aside and named in a response header.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import orjson

from hydra.http.chat_request import parse_chat
from hydra.http.fields import Fields, key_name
from hydra.http.json_size import check_size
from hydra.http.parameters import Kind, check_parameters
from hydra.http.prompts import TOKEN_IDS_END, Prompt, listed_ids, prompts_of
from hydra.protocol.refusal import refuse
from hydra.protocol.sampling import TOP_P_MIN, DefaultSampling
from hydra.text.json_depth import JSON_DEPTH_MAX, json_depth
from hydra.text.tokenizer import ChatInput

STOP_MAX, STOP_IDS_MAX, N_MAX, LOGPROBS_MAX, BIAS_MAX, OPTIONS_MAX = 16, 1024, 128, 20, 1024, 64
MAX_TOKENS_MAX = 1 << 30
MODEL_NAME_MAX = 1024  # characters
TEXT_TOKENS = 16  # of a completion that does not say how many
TOKEN_ID = re.compile(r"[0-9]{1,10}")

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class ApiRequest:
    """What both endpoints have in common, checked; `chat` or `prompts` by kind."""

    kind: Kind
    model: str
    chat: ChatInput = ChatInput(messages=())
    prompts: tuple[Prompt, ...] = ()
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False  # in every chunk
    max_tokens: int | None = None  # 0: an echo and no more
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop: bool = False
    return_ids: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    ignored: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()  # parameters that the request has a value for

    def with_defaults(self, defaults: DefaultSampling) -> "ApiRequest":
        """What a request leaves out is as the model's publisher would have it, else as OpenAI does."""
        wished = {name: value for name, value in attrs.asdict(defaults).items() if value is not None}
        return attrs.evolve(self, **{name: value for name, value in wished.items() if name not in self.given})


def read_request(kind: Kind, body: bytes | str) -> ApiRequest:
    """Raises RefusalError naming what is wrong. May take a second: a large body is for another thread."""
    return parse_request(kind, parse_json(body))


def parse_json(body: bytes | str) -> dict[str, Any]:
    """Raises RefusalError invalid_json on anything but one JSON object of a size that can be walked through."""
    check_size(body.encode() if isinstance(body, str) else body)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as why:
        raise refuse("invalid_json", f"the body is not valid JSON: {why}") from why
    if not isinstance(content, dict):
        raise refuse("invalid_json", "the body must be a JSON object")
    if json_depth(content) > JSON_DEPTH_MAX:
        raise refuse("invalid_json", f"the body is nested more than {JSON_DEPTH_MAX} deep")
    return content


def parse_request(kind: Kind, body: dict[str, Any]) -> ApiRequest:
    """Raises RefusalError naming the parameter."""
    ignored = check_parameters(kind, body)
    fields = Fields(body)
    _check_best_of(fields)
    ignored |= _response_format(fields)
    # Without `stream` they ask for nothing that the answer lacks: its usage is in it.
    options = Fields(fields.object_of("stream_options", OPTIONS_MAX), inside="stream_options")
    ignored |= _overlooked(options, {"include_usage", "continuous_usage_stats", "include_obfuscation"})
    chat = ChatInput(messages=())
    if kind == "chat":
        chat, overlooked = parse_chat(body)
        ignored |= overlooked
    max_tokens = _max_tokens(kind, fields)
    return ApiRequest(
        kind=kind,
        model=fields.text("model", MODEL_NAME_MAX),
        chat=chat,
        prompts=prompts_of(body.get("prompt")) if kind == "text" else (),
        stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"),
        continuous_usage=options.flag("continuous_usage_stats"),
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=max(TOP_P_MIN, fields.number("top_p", 1.0, 0.0, 1.0)),
        top_k=max(0, fields.integer("top_k", 0, -1, 1 << 30)),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=_repetition_penalty(fields),
        logit_bias=_logit_bias(fields),
        seed=fields.integer("seed", secrets.randbits(63), -(1 << 63), (1 << 63) - 1) & ((1 << 64) - 1),
        stop=_stop(body),
        stop_token_ids=tuple(listed_ids(fields.list_of("stop_token_ids", STOP_IDS_MAX), "stop_token_ids")),
        n=fields.integer("n", 1, 1, N_MAX),
        logprobs=_logprobs(kind, fields),
        ignore_eos=fields.flag("ignore_eos"),
        min_tokens=_min_tokens(fields, max_tokens),
        include_stop=_either(fields, "include_stop_str_in_output", "no_stop_trim", fields.flag) or False,
        return_ids=fields.flag("return_token_ids"),
        skip_special_tokens=fields.flag("skip_special_tokens", default=True),
        echo=_echo(fields) if kind == "text" else False,
        ignored=tuple(sorted(ignored)),
        given=_given(body),
    )


def _given(body: dict[str, Any]) -> frozenset[str]:
    names = {key for key, value in body.items() if value is not None}
    return frozenset(names | {"repetition_penalty"} if "repeat_penalty" in names else names)


def _either(fields: Fields, ours: str, other: str, read: Callable[[str], T]) -> T | None:
    """One parameter by two names. Sent by both, they must agree."""
    values = {read(name) for name in (ours, other) if fields.body.get(name) is not None}
    if len(values) > 1:
        raise refuse("invalid_value", f"{other} and {ours} are one parameter; send one of them", param=other)
    return values.pop() if values else None


def _repetition_penalty(fields: Fields) -> float:
    def read(name: str) -> float:
        return fields.number(name, 1.0, 0.01, 10.0)

    return _either(fields, "repetition_penalty", "repeat_penalty", read) or 1.0


def _overlooked(options: Fields, known: set[str]) -> set[str]:
    """Keys inside of a parameter that nobody reads, with the parameter's name in front."""
    sent = {key for key, value in options.body.items() if value is not None}
    return {f"{options.inside}.{key_name(key)}" for key in sent - known}


def _max_tokens(kind: Kind, fields: Fields) -> int | None:
    """None: to the end of the context. Zero is for those who only want their prompt back."""
    default, least = (TEXT_TOKENS, 0) if kind == "text" else (-1, 1)
    tokens = fields.integer("max_tokens", default, least, MAX_TOKENS_MAX)
    tokens = fields.integer("max_completion_tokens", tokens, 1, MAX_TOKENS_MAX)
    if tokens == 0 and not fields.flag("echo"):
        message = "max_tokens: 0 needs echo: true, which sends the prompt back; without it there is nothing to answer"
        raise refuse("invalid_value", message, param="max_tokens")
    return None if tokens < 0 else tokens


def _check_best_of(fields: Fields) -> None:
    n = fields.integer("n", 1, 1, N_MAX)
    if fields.integer("best_of", n, 1, 1 << 30) != n:
        message = "best_of is not supported by this version: leave it out, or send the value of n"
        raise refuse("unsupported", message, param="best_of")


def _response_format(fields: Fields) -> set[str]:
    """Text is what there is; its other keys are overlooked."""
    form = Fields(fields.object_of("response_format", OPTIONS_MAX), inside="response_format")
    if fields.body.get("response_format") is None:
        return set()
    kind = form.body.get("type")
    if not isinstance(kind, str):
        raise refuse("invalid_value", "response_format needs a type, which is a string", param="response_format")
    schemas = [key for key in ("json_schema", "schema", "grammar") if form.body.get(key) is not None]
    if kind != "text" or schemas:
        asked = f"type {kind!r}" if kind != "text" else schemas[0]
        message = f'response_format: {asked} is not supported by this version: leave it out, or send type "text"'
        raise refuse("unsupported", message, param="response_format")
    return _overlooked(form, {"type"})


def _min_tokens(fields: Fields, max_tokens: int | None) -> int:
    least = fields.integer("min_tokens", 0, 0, MAX_TOKENS_MAX)
    if max_tokens is not None and least > max_tokens:
        message = f"min_tokens {least} is more than the {max_tokens} tokens that the answer may have"
        raise refuse("invalid_value", message, param="min_tokens")
    return least


def _echo(fields: Fields) -> bool:
    echo = fields.flag("echo")
    if echo and fields.body.get("logprobs") is not None:
        message = "echo together with logprobs is not supported by this version: leave one of them out"
        raise refuse("unsupported", message, param="echo")
    return echo


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for token, value in fields.object_of("logit_bias", BIAS_MAX).items():
        known = TOKEN_ID.fullmatch(token) and int(token) < TOKEN_IDS_END
        if not known or type(value) not in (int, float) or not abs(value) <= 100:
            message = "logit_bias maps token ids to numbers between -100 and 100"
            raise refuse("invalid_value", message, param="logit_bias")
        pairs.append((int(token), float(value)))
    return tuple(pairs)


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    """An empty string stops at nothing, so it is no stop string; null and [] are none."""
    stop = body.get("stop")
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    fine = isinstance(strings, list) and len(strings) <= STOP_MAX
    if not fine or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in strings):
        message = f"stop must be at most {STOP_MAX} non-empty strings of at most 256 characters"
        raise refuse("invalid_value", message, param="stop")
    return tuple(strings)


def _logprobs(kind: Kind, fields: Fields) -> int | None:
    if kind == "text":
        if fields.body.get("logprobs") is None:
            return None
        return fields.integer("logprobs", 0, 0, LOGPROBS_MAX)
    top = fields.integer("top_logprobs", 0, 0, LOGPROBS_MAX)
    asked = fields.flag("logprobs")
    if top and not asked:
        raise refuse("invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    return top if asked else None
