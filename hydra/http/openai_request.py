"""An OpenAI request body as a frozen request, or a 400 that names the parameter. Pure.

Types are exact (true is no number), ranges are checked before anything is allocated. A parameter that is known and
cannot be honoured is refused; an unknown one is left aside and named in a response header.
"""

from typing import Any

import attrs
import orjson

from hydra.http.chat_request import parse_chat
from hydra.http.fields import Fields, key_name
from hydra.http.json_size import check_size
from hydra.http.parameters import ApiKind, check_parameters
from hydra.http.prompts import Prompt, listed_ids, prompts_of
from hydra.http.sampling_request import MAX_TOKENS_MAX, sampling_of
from hydra.protocol.refusal import refuse
from hydra.protocol.sampling import DefaultSampling, SamplingParams
from hydra.text.json_depth import JSON_DEPTH_MAX, json_depth
from hydra.text.tokenizer import ChatInput

STOP_MAX, STOP_IDS_MAX, N_MAX, OPTIONS_MAX = 16, 1024, 128, 64
MODEL_NAME_MAX = 1024  # characters
TEXT_TOKENS = 16  # of a completion that does not say how many


@attrs.frozen(kw_only=True)
class ApiRequest:
    """What both endpoints have in common, checked; `chat` or `prompts` by kind."""

    kind: ApiKind
    model: str
    chat: ChatInput = ChatInput(messages=())
    prompts: tuple[Prompt, ...] = ()
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False  # in every chunk
    max_tokens: int | None = None  # 0: an echo and no more
    sampling: SamplingParams = SamplingParams()  # of all its answers; each has its own `choice` and `stop_ids`
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    include_stop: bool = False
    return_ids: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    ignored: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()  # parameters that the request has a value for

    def with_defaults(self, defaults: DefaultSampling) -> "ApiRequest":
        """What a request leaves out is as the model's publisher would have it, else as OpenAI does."""
        return attrs.evolve(self, sampling=self.sampling.with_defaults(defaults, self.given))


def read_request(kind: ApiKind, body: bytes | str) -> ApiRequest:
    """Raises RefusalError naming what is wrong. May take a second: a large body is for another thread."""
    return parse_request(kind, parse_json(body))


def parse_json(body: bytes | str) -> dict[str, Any]:
    """Raises RefusalError invalid_json on anything but one JSON object of a size that can be walked through."""
    check_size(body.encode() if isinstance(body, str) else body)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise refuse("invalid_json", f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise refuse("invalid_json", "the body must be a JSON object")
    if json_depth(content) > JSON_DEPTH_MAX:
        raise refuse("invalid_json", f"the body is nested more than {JSON_DEPTH_MAX} deep")
    return content


def parse_request(kind: ApiKind, body: dict[str, Any]) -> ApiRequest:
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
        sampling=sampling_of(kind, fields, max_tokens),
        stop=_stop(body),
        stop_token_ids=tuple(listed_ids(fields.list_of("stop_token_ids", STOP_IDS_MAX), "stop_token_ids")),
        n=fields.integer("n", 1, 1, N_MAX),
        ignore_eos=fields.flag("ignore_eos"),
        include_stop=fields.either("include_stop_str_in_output", "no_stop_trim", fields.flag) or False,
        return_ids=fields.flag("return_token_ids"),
        skip_special_tokens=fields.flag("skip_special_tokens", default=True),
        echo=_echo(fields) if kind == "text" else False,
        ignored=tuple(sorted(ignored)),
        given=_given(body),
    )


def _given(body: dict[str, Any]) -> frozenset[str]:
    names = {key for key, value in body.items() if value is not None}
    return frozenset(names | {"repetition_penalty"} if "repeat_penalty" in names else names)


def _overlooked(options: Fields, known: set[str]) -> set[str]:
    """Keys inside of a parameter that nobody reads, with the parameter's name in front."""
    sent = {key for key, value in options.body.items() if value is not None}
    return {f"{options.inside}.{key_name(key)}" for key in sent - known}


def _max_tokens(kind: ApiKind, fields: Fields) -> int | None:
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


def _echo(fields: Fields) -> bool:
    echo = fields.flag("echo")
    if echo and fields.body.get("logprobs") is not None:
        message = "echo together with logprobs is not supported by this version: leave one of them out"
        raise refuse("unsupported", message, param="echo")
    return echo


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    """An empty string stops at nothing, so it is no stop string; null and [] are none."""
    stop = body.get("stop")
    strings = [] if stop is None else [stop] if isinstance(stop, str) else stop
    fine = isinstance(strings, list) and len(strings) <= STOP_MAX
    if not fine or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in strings):
        message = f"stop must be at most {STOP_MAX} non-empty strings of at most 256 characters"
        raise refuse("invalid_value", message, param="stop")
    return tuple(strings)
