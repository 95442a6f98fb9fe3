"""An OpenAI request body as a frozen request, or a 400 that names the parameter. Pure.

Types are exact (true is no number), ranges are checked before anything is allocated. A parameter that is known and
cannot be honoured is refused; an unknown one is left aside and named in a response header.
"""

import math
import secrets
from typing import Any, Literal

import attrs
import orjson

from hydra.http.chat_request import CHAT, JSON_DEPTH_MAX, json_depth, parse_chat
from hydra.http.tokenizer import ChatInput
from hydra.protocol.refusal import refuse
from hydra.protocol.sampling import DefaultSampling

STOP_MAX, N_MAX, LOGPROBS_MAX, BIAS_MAX = 16, 16, 20, 1024
TOP_P_MIN = 1e-6  # 0 means: only the best one

SAMPLING = {
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop", "n", "logprobs", "ignore_eos", "min_tokens", "stop_token_ids", "stream",
    "stream_options", "max_tokens", "max_completion_tokens", "model", "include_stop_str_in_output",
    "return_token_ids", "skip_special_tokens",
}  # fmt: skip
TEXT = {"prompt", "echo"}
INERT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
}  # fmt: skip


@attrs.frozen(kw_only=True)
class ApiRequest:
    """What both endpoints have in common, checked; `chat` or `prompts` by kind."""

    kind: Literal["chat", "text"]
    model: str
    chat: ChatInput = ChatInput(messages=())
    prompts: tuple[str | tuple[int, ...], ...] = ()
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
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


def parse_json(body: bytes | str) -> dict[str, Any]:
    """Raises RefusalError invalid_json on anything but one JSON object."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as why:
        raise refuse("invalid_json", f"the body is not valid JSON: {why}") from why
    if not isinstance(content, dict):
        raise refuse("invalid_json", "the body must be a JSON object")
    if json_depth(content) > JSON_DEPTH_MAX:
        raise refuse("invalid_json", f"the body is nested more than {JSON_DEPTH_MAX} deep")
    return content


@attrs.define
class _Fields:
    """Typed access to a body; every complaint names its parameter."""

    body: dict[str, Any]

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise refuse("invalid_value", f"{name} must be a number", param=name)
        if not low <= value <= high:
            raise refuse("invalid_value", f"{name} must lie between {low:g} and {high:g}, not {value:g}", param=name)
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.body.get(name)
        if value is None:
            return default
        if type(value) is not int:
            raise refuse("invalid_value", f"{name} must be an integer", param=name)
        if not low <= value <= high:
            raise refuse("invalid_value", f"{name} must lie between {low} and {high}, not {value}", param=name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.body.get(name)
        if value is not None and type(value) is not bool:
            raise refuse("invalid_value", f"{name} must be true or false", param=name)
        return default if value is None else value

    def text(self, name: str) -> str:
        value = self.body.get(name)
        if not isinstance(value, str) or not value:
            raise refuse("invalid_value", f"{name} must be a non-empty string", param=name)
        return value


def parse_request(kind: Literal["chat", "text"], body: dict[str, Any]) -> ApiRequest:
    """Raises RefusalError naming the parameter."""
    fields = _Fields(body)
    _refuse_unsupported(kind, body)
    max_tokens = fields.integer("max_tokens", 0, 1, 1 << 30)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, 1, 1 << 30)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or type(options.get("include_usage", False)) is not bool:
        raise refuse("invalid_value", "stream_options must be an object", param="stream_options")
    known = SAMPLING | INERT | (CHAT | {"top_logprobs"} if kind == "chat" else TEXT)
    ignored = {key for key in body if key not in known and key.isidentifier()}
    chat = ChatInput(messages=())
    if kind == "chat":
        chat, overlooked = parse_chat(body)
        ignored |= overlooked
    return ApiRequest(
        kind=kind,
        model=fields.text("model"),
        chat=chat,
        prompts=_prompts(body) if kind == "text" else (),
        stream=fields.flag("stream"),
        include_usage=options.get("include_usage", False),
        max_tokens=max_tokens or (16 if kind == "text" else None),
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=max(TOP_P_MIN, fields.number("top_p", 1.0, 0.0, 1.0)),
        top_k=max(0, fields.integer("top_k", 0, -1, 1 << 30)),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.01, 10.0),
        logit_bias=_logit_bias(body),
        seed=fields.integer("seed", secrets.randbits(63), -(1 << 63), (1 << 63) - 1) & ((1 << 64) - 1),
        stop=_stop(body),
        stop_token_ids=_token_ids(body.get("stop_token_ids") or [], "stop_token_ids"),
        n=fields.integer("n", 1, 1, N_MAX),
        logprobs=_logprobs(kind, fields),
        ignore_eos=fields.flag("ignore_eos"),
        min_tokens=fields.integer("min_tokens", 0, 0, 1 << 30),
        include_stop=fields.flag("include_stop_str_in_output"),
        return_ids=fields.flag("return_token_ids"),
        skip_special_tokens=fields.flag("skip_special_tokens", True),
        echo=fields.flag("echo") if kind == "text" else False,
        ignored=tuple(sorted(ignored)),
        given=frozenset(key for key, value in body.items() if value is not None),
    )


def _refuse_unsupported(kind: str, body: dict[str, Any]) -> None:
    """What we know and do not do: better a 400 than an answer to another question."""
    best_of = body.get("best_of")
    no = {
        "tools": kind == "text" and bool(body.get("tools")),
        "functions": bool(body.get("functions")),
        "tool_choice": body.get("tool_choice") not in (None, "none", "auto"),
        "response_format": body.get("response_format") not in (None, {"type": "text"}),
        "suffix": bool(body.get("suffix")),
        "best_of": best_of not in (None, body.get("n", 1)),
        "modalities": body.get("modalities") not in (None, ["text"]),
        "audio": body.get("audio") is not None,
        "prediction": body.get("prediction") is not None,
        "guided_json": body.get("guided_json") is not None,
        "structured_outputs": body.get("structured_outputs") is not None,
        "echo": kind == "text" and bool(body.get("echo")) and body.get("logprobs") is not None,
    }
    for param, asked in no.items():
        if asked:
            raise refuse("unsupported", f"{param} is not supported by this version", param=param)


def _prompts(body: dict[str, Any]) -> tuple[str | tuple[int, ...], ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        found: tuple[str | tuple[int, ...], ...] = tuple(prompt)
    elif isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        found = (_token_ids(prompt, "prompt"),)
    elif isinstance(prompt, list) and prompt and all(isinstance(item, list) and item for item in prompt):
        found = tuple(_token_ids(item, "prompt") for item in prompt)
    else:
        message = "prompt must be a string, a list of strings, a list of token ids, or a list of those"
        raise refuse("invalid_value", message, param="prompt")
    if len(found) > N_MAX:
        raise refuse("invalid_value", f"at most {N_MAX} prompts", param="prompt")
    return found


def _token_ids(values: Any, param: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 31 for value in values):
        raise refuse("invalid_value", f"{param} must be token ids", param=param)
    return tuple(values)


def _logit_bias(body: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    bias = body.get("logit_bias") or {}
    if not isinstance(bias, dict) or len(bias) > BIAS_MAX:
        raise refuse("invalid_value", f"logit_bias must map at most {BIAS_MAX} token ids", param="logit_bias")
    pairs: list[tuple[int, float]] = []
    for token, value in bias.items():
        if not token.isdecimal() or int(token) >= 1 << 31 or type(value) not in (int, float) or not abs(value) <= 100:
            message = "logit_bias maps token ids to numbers between -100 and 100"
            raise refuse("invalid_value", message, param="logit_bias")
        pairs.append((int(token), float(value)))
    return tuple(pairs)


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    strings = [stop] if isinstance(stop, str) else stop or []
    fine = isinstance(strings, list) and len(strings) <= STOP_MAX
    if not fine or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in strings):
        raise refuse("invalid_value", f"stop must be at most {STOP_MAX} non-empty strings", param="stop")
    return tuple(strings)


def _logprobs(kind: str, fields: _Fields) -> int | None:
    if kind == "text":
        if fields.body.get("logprobs") is None:
            return None
        return fields.integer("logprobs", 0, 0, LOGPROBS_MAX)
    top = fields.integer("top_logprobs", 0, 0, LOGPROBS_MAX)
    asked = fields.flag("logprobs")
    if top and not asked:
        raise refuse("invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    return top if asked else None
