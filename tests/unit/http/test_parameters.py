"""No parameter that would change the answer is dropped with a 200, and none that was honoured is called ignored."""

import json

import pytest

from hydra.http.app import make_app
from hydra.http.openai_request import parse_request
from hydra.protocol.refusal import RefusalError
from hydra.simulation.asgi_client import ask
from hydra.text.tokenizer import ModelTokenizer
from tests.unit.http.conftest import tokenizers_of

USER = {"role": "user", "content": "hi"}
BODIES = {"chat": {"model": "m", "messages": [USER]}, "text": {"model": "m", "prompt": "hi"}}
SCHEMA = {"type": "object"}

# What each asks for, and values of the same parameter that ask for nothing.
REFUSED = {
    "guided_json": (SCHEMA, []),
    "guided_regex": ("a+", [""]),
    "guided_choice": (["a"], [[]]),
    "guided_grammar": ("root ::= 1", [""]),
    "structured_outputs": ({"json": SCHEMA}, [{}]),
    "grammar": ("root ::= 1", [""]),
    "json_schema": ({}, []),
    "regex": ("a+", [""]),
    "ebnf": ("root ::= 1", [""]),
    "bad_words": (["no"], [[]]),
    "allowed_token_ids": ([1], []),
    "logits_processors": (["x"], [[]]),
    "functions": ([{"name": "f"}], [[]]),
    "function_call": ({"name": "f"}, ["none", "auto"]),
    "response_format": ({"type": "json_object"}, [{"type": "text"}]),
    "prompt_logprobs": (0, []),
    "logprob_token_ids": ([1], [[]]),
    "return_tokens_as_token_ids": (True, [False]),
    "n_probs": (5, [0]),
    "top_n_tokens": (5, [0]),
    "truncate_prompt_tokens": (-1, []),
    "prompt_embeds": ("AAAA", [[]]),
    "use_beam_search": (True, [False]),
    "length_penalty": (0.5, [1, 1.0]),
    "best_of": (3, [1]),
    "suffix": ("end", [""]),
    "mirostat": (2, [0]),
    "dry_multiplier": (0.8, [0, 0.0]),
    "xtc_probability": (0.5, [0]),
    "typical_p": (0.5, [1.0]),
    "tfs_z": (0.5, [1]),
    "min_length": (5, [0]),
    "no_repeat_ngram_size": (3, [0]),
    "repeat_last_n": (64, [-1]),
    "samplers": (["top_k"], [[]]),
    "t_max_predict_ms": (100, [0, -1]),
    "n_predict": (5, [-1]),
    "max_new_tokens": (5, []),
    "stop_token": ("x", [""]),
    "stop_regex": ("x", []),
    "random_seed": (5, []),
    "verbosity": ("high", ["medium"]),
    "thinking": ({"type": "enabled"}, []),
    "enable_thinking": (False, []),
    "web_search_options": ({}, []),
    "modalities": (["text", "audio"], [["text"]]),
    "audio": ({"voice": "x"}, []),
    "lora_path": ("x", [""]),
    "mm_processor_kwargs": ({"a": 1}, [{}]),
    "include_reasoning": (False, [True]),
    "timings_per_token": (True, [False]),
}
OF_ONE_KIND = [
    ("text", "tools", [{"type": "function"}], [[]]),
    ("text", "tool_choice", "required", ["none", "auto"]),
    ("text", "documents", [{}], [[]]),
    ("text", "chat_template_kwargs", {"a": 1}, [{}]),
    ("text", "messages", [USER], [[]]),
    ("text", "top_logprobs", 2, [0]),
    ("text", "reasoning_effort", "low", []),
    ("text", "add_special_tokens", False, [True]),
    ("chat", "add_special_tokens", True, [False]),
    ("chat", "echo", True, [False]),
    ("chat", "prompt", "x", ["", []]),
]
CASES = [(kind, name, *values) for kind in BODIES for name, values in REFUSED.items()] + OF_ONE_KIND


@pytest.fixture
def app(cluster, shutdown):
    """Over words that are not tried first: these tests are about requests."""
    return make_app(cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=tokenizers_of(ModelTokenizer.load))


def parse(kind, **changes):
    return parse_request(kind, BODIES[kind] | changes)


@pytest.mark.parametrize(("kind", "name", "asking", "neutral"), CASES, ids=lambda value: str(value)[:20])
def test_what_would_change_the_answer_is_refused_by_name(kind, name, asking, neutral):
    with pytest.raises(RefusalError) as refused:
        parse(kind, **{name: asking})
    refusal = refused.value.refusal
    assert (refusal.code, refusal.param) == ("unsupported", name) and name in refusal.message
    for value in (*neutral, None):
        assert parse(kind, **{name: value}).ignored == (), f"{name}: {value} asks for nothing"


@pytest.mark.parametrize("kind", BODIES)
def test_what_changes_no_answer_is_accepted(kind):
    quiet = {"user": "me", "metadata": {"a": 1}, "store": True, "spaces_between_special_tokens": False}
    assert parse(kind, **quiet).ignored == ()
    said = {"priority": 3, "cache_salt": "x", "session_id": "s", "mirostat_tau": 5.0, "parallel_tool_calls": False}
    assert parse(kind, **said).ignored == tuple(sorted(said))
    assert parse(kind, priority=0, parallel_tool_calls=True, cache_salt=None).ignored == ()


@pytest.mark.parametrize("kind", BODIES)
def test_unknown_keys_are_named_unless_they_are_null(kind):
    assert parse(kind, wibble=1, wobble=None, nobble={}).ignored == ("nobble", "wibble")
    odd = {"日本": 1, "a b": 1, "x,y\r\nz": 1, "ok-key": 1}
    assert parse(kind, **odd).ignored == ("%E6%97%A5%E6%9C%AC", "a%20b", "ok-key", "x%2Cy%0D%0Az")


async def test_unknown_keys_are_named_in_ascii(app):
    """A header holds no other characters: such a key was an internal error, or was not named."""
    answer = await ask(app, "POST", "/v1/completions", BODIES["text"] | dict.fromkeys(("日本", "é", "x" * 5000), 1))
    assert answer.status == 200 and answer.headers["x-hydra-ignored"].isascii()
    assert len(answer.headers["x-hydra-ignored"].split(",")) == 3 and len(answer.headers["x-hydra-ignored"]) < 200


def test_unknown_keys_inside_of_parameters_are_named():
    options = {"include_usage": True, "include_obfuscation": False, "chunk_size": 5, "extra": None}
    assert parse("text", stream_options=options).ignored == ("stream_options.chunk_size",)
    assert parse("chat", response_format={"type": "text", "strength": 5}).ignored == ("response_format.strength",)
    parts = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "colour": "red"}]
    messages = [{"role": "user", "content": parts, "weight": 1, "audio": None}]
    assert parse("chat", messages=messages).ignored == ("messages.content.colour", "messages.weight")


@pytest.mark.parametrize(
    "value", [{"type": "text", "json_schema": {}}, {"type": "json_schema"}, {"type": "structural"}]
)
def test_only_text_is_a_response_format(value):
    with pytest.raises(RefusalError) as refused:
        parse("chat", response_format=value)
    assert (refused.value.refusal.code, refused.value.refusal.param) == ("unsupported", "response_format")


# Values of the wrong type that are false, and were taken for "not there".
EMPTY_BUT_WRONG = {
    "stream_options": ([], "", 0, False),
    "stop": (False, 0, {}, ""),
    "stop_token_ids": ("", {}, 0, False),
    "logit_bias": ([], "", 0, False),
    "response_format": ([], "", 0, False, {}),
    "max_tokens": ("", False, [], {}),
    "n": ("", False, [], 0),
    "best_of": (True, False, "", []),
    "stream": ("", 0, [], {}),
    "seed": ("", False, []),
    "temperature": ("", False, [], {}),
    "skip_special_tokens": ("", 0, []),
    "repeat_penalty": ("", False, []),
}
EMPTY_BUT_WRONG_IN_CHATS = {
    "tools": ("", {}, 0, False),
    "documents": ("", {}, 0, False),
    "chat_template_kwargs": ([], "", 0, False),
    "messages": ("", {}, 0, False, []),
    "chat_template": ([], 0, False, {}),
    "add_generation_prompt": ("", 0, []),
    "top_logprobs": (False, "", []),
    "tool_choice": ("", [], {}, False, 0),
}
WRONG = [("text", name, value) for name, values in EMPTY_BUT_WRONG.items() for value in values]
WRONG += [
    ("chat", name, value) for name, values in (EMPTY_BUT_WRONG | EMPTY_BUT_WRONG_IN_CHATS).items() for value in values
]
WRONG += [("text", "prompt", value) for value in (0, False, {}, [], [[]], ["", 0])]
# Of what is refused when it asks: a value of another type asks as well.
WRONG += [
    (kind, name, value)
    for kind in BODIES
    for name, value in [("functions", {}), ("suffix", []), ("suffix", False), ("bad_words", ""), ("guided_choice", {})]
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG, ids=str)
def test_a_false_value_of_the_wrong_type_is_no_absence(kind, name, value):
    with pytest.raises(RefusalError) as refused:
        parse(kind, **{name: value})
    assert refused.value.refusal.param == name


@pytest.mark.parametrize("key", ["include_usage", "continuous_usage_stats"])
def test_options_of_a_stream_are_flags(key):
    assert parse("text", stream_options={key: None}).include_usage is False
    for wrong in ("", 0, [], "yes"):
        with pytest.raises(RefusalError) as refused:
            parse("text", stream_options={key: wrong})
        assert refused.value.refusal.param == "stream_options"


def test_two_spellings_are_one_parameter():
    for spelling in ("repeat_penalty", "repetition_penalty"):
        request = parse("text", **{spelling: 1.5})
        assert (
            request.sampling.repetition_penalty == 1.5
            and "repetition_penalty" in request.given
            and request.ignored == ()
        )
    assert parse("text", repeat_penalty=1.5, repetition_penalty=1.5).sampling.repetition_penalty == 1.5
    for broken in ({"repeat_penalty": 1.5, "repetition_penalty": 1.2}, {"repeat_penalty": 100}):
        with pytest.raises(RefusalError) as refused:
            parse("text", **broken)
        assert refused.value.refusal.param == "repeat_penalty"
    assert parse("text", no_stop_trim=True).include_stop and not parse("text").include_stop


def test_special_tokens_are_skipped_unless_the_request_says_otherwise():
    assert parse("chat").skip_special_tokens and parse("chat", skip_special_tokens=None).skip_special_tokens
    request = parse("chat", skip_special_tokens=False)
    assert not request.skip_special_tokens and request.ignored == ()


@pytest.mark.parametrize("token", ["9" * 5000, "٣", "-1", "", " 1"])
def test_a_token_to_bias_is_a_plain_number(token):
    with pytest.raises(RefusalError) as refused:
        parse("text", **json.loads(json.dumps({"logit_bias": {token: 1}})))
    assert refused.value.refusal.param == "logit_bias"


def test_what_common_clients_send_by_default_is_fine():
    """Everything at its neutral value, as programs that know many servers send it."""
    quiet = {
        "n": 1, "best_of": 1, "stop": None, "logprobs": None, "repetition_penalty": 1.0, "ignore_eos": False,
        "use_beam_search": False, "length_penalty": 1.0, "typical_p": 1, "tfs": 1, "mirostat_mode": 0,
        "dry_multiplier": 0, "xtc_probability": 0, "min_length": 0, "skip_special_tokens": True,
        "spaces_between_special_tokens": True, "grammar": "", "suffix": "", "logit_bias": {}, "bad_words": [],
        "prompt_logprobs": None, "truncate_prompt_tokens": None, "min_tokens": 0, "top_k": -1, "user": "x",
    }  # fmt: skip
    assert parse("text", **quiet).ignored == ()
