"""What a chat request may bring along for the template: tools, documents, earlier calls. A no names its parameter."""

from pathlib import Path

import attrs
import pytest

from hydra.http.openai_request import parse_request
from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import DefaultSampling
from hydra.simulation.asgi_client import ask
from hydra.text.tokenizer import ChatInput, ModelTokenizer
from tests.unit.http.fake_cluster import tokens_of
from tests.unit.text.tokenizer_zoo import CHATML, byte_fallback, byte_level, save

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


def chat(**changes):
    return parse_request("chat", {"model": "m", "messages": [USER], **changes}).chat


def test_a_plain_chat():
    assert chat() == ChatInput(messages=(USER,))


def test_thoughts_go_by_both_names():
    for key in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": "x", "reasoning_content": None, key: "hm"}
        assert chat(messages=[message]).messages[0] | {"role": "", "content": ""} == {
            "role": "",
            "content": "",
            "reasoning_content": "hm",
            "thinking": "hm",
        }


def test_a_model_that_may_use_no_tool_sees_none():
    assert chat(tools=[TOOL]).tools == chat(tools=[TOOL], tool_choice="auto").tools == (TOOL,)
    assert chat(tools=[TOOL], tool_choice="none").tools is None
    assert chat(tools=[]).tools is None and chat(tools=None).tools is None


def test_what_a_message_holds_and_nobody_reads_is_named():
    request = parse_request("chat", {"model": "m", "messages": [USER | {"weight": 1, "refusal": None}], "wobble": 1})
    assert request.ignored == ("messages.weight", "wobble")


def call_of(**changes):
    function = {"name": "look", "arguments": "{}"} | changes
    return [{"role": "assistant", "content": None, "tool_calls": [{"function": function}]}]


def tool_of(**changes):
    return [{"type": "function", "function": {"name": "look"} | changes}]


BROKEN = {
    "tools as an object": ({"tools": {}}, "invalid_value", "tools"),
    "too many tools": ({"tools": [TOOL] * 129}, "invalid_value", "tools"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "unsupported", "tools"),
    "a tool of another kind": ({"tools": [{"type": "code_interpreter"}]}, "unsupported", "tools"),
    "a tool without a name": ({"tools": tool_of(name="")}, "invalid_value", "tools"),
    "a tool whose name is a token": ({"tools": tool_of(name="<|im_end|>")}, "invalid_value", "tools"),
    "a description of numbers": ({"tools": tool_of(description=5)}, "invalid_value", "tools"),
    "parameters as text": ({"tools": tool_of(parameters="x")}, "invalid_value", "tools"),
    "a strictness of words": ({"tools": tool_of(strict="yes")}, "invalid_value", "tools"),
    "a tool that must be used": ({"tools": [TOOL], "tool_choice": "required"}, "unsupported", "tool_choice"),
    "one tool that must be used": ({"tools": [TOOL], "tool_choice": TOOL}, "unsupported", "tool_choice"),
    "old functions": ({"functions": [{}]}, "unsupported", "functions"),
    "documents as text": ({"documents": "x"}, "invalid_value", "documents"),
    "a document as text": ({"documents": ["x"]}, "invalid_value", "documents"),
    "a template in a request": ({"chat_template": "{{ messages }}"}, "unsupported", "chat_template"),
    "a template's name as a number": ({"chat_template": 5}, "invalid_value", "chat_template"),
    "kwargs as a list": ({"chat_template_kwargs": [1]}, "invalid_value", "chat_template_kwargs"),
    "kwargs that take a name": ({"chat_template_kwargs": {"tools": []}}, "invalid_value", "chat_template_kwargs"),
    "a beginning by kwargs": ({"chat_template_kwargs": {"bos_token": "x"}}, "invalid_value", "chat_template_kwargs"),
    "a prompt as text": ({"add_generation_prompt": "yes"}, "invalid_value", "add_generation_prompt"),
    "both at once": ({"continue_final_message": True}, "invalid_value", "continue_final_message"),
    "calls of a user": ({"messages": [USER | {"tool_calls": [CALL]}]}, "invalid_value", "messages"),
    "calls as an object": ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "invalid_value", "messages"),
    "a call without a name": ({"messages": call_of(name=None)}, "invalid_value", "messages"),
    "arguments as a list": ({"messages": call_of(arguments=[1])}, "invalid_value", "messages"),
    "arguments as a flag": ({"messages": call_of(arguments=False)}, "invalid_value", "messages"),
    "an old call": ({"messages": [{"role": "assistant", "function_call": {}}]}, "invalid_value", "messages"),
    "a name as a number": ({"messages": [USER | {"name": 5}]}, "invalid_value", "messages"),
    "thoughts as a list": (
        {"messages": [{"role": "assistant", "content": "x", "reasoning": []}]},
        "invalid_value",
        "messages",
    ),
    "an effort as a number": ({"reasoning_effort": 3}, "invalid_value", "reasoning_effort"),
    "two efforts": (
        {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
        "invalid_value",
        "reasoning_effort",
    ),
}


@pytest.mark.parametrize(("changes", "code", "param"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_chats_are_refused_by_name(changes, code, param):
    with pytest.raises(RefusalError) as refused:
        chat(**changes)
    assert (refused.value.refusal.code, refused.value.refusal.param) == (code, param)


@pytest.fixture
def zoo_cluster(cluster, tmp_path):
    directory = save(tmp_path, byte_level(), CHATML + "{{ mood }}")
    where = str(directory)
    cluster.card = attrs.evolve(cluster.card, model_path=where, folder=where, vocab=1000, max_model_len=2000)
    return cluster


async def test_tools_and_documents_reach_the_prompt(app, zoo_cluster):
    body = {
        "model": "m",
        "messages": [USER],
        "tools": [TOOL],
        "documents": [{"title": "T", "text": "once"}],
        "chat_template_kwargs": {"mood": "merry", "nobody": 1},
    }
    answer = await ask(app, "POST", "/v1/chat/completions", body)
    assert answer.status == 200 and answer.headers["x-hydra-ignored"] == "chat_template_kwargs.nobody"
    words = ModelTokenizer.load(Path(zoo_cluster.card.model_path))
    prompt = words.decode(zoo_cluster.requests[0].prompt.tolist())
    assert '"name": "look"' in prompt and "T: once" in prompt and prompt.endswith("merry")


@pytest.mark.parametrize("param", ["tools", "documents"])
async def test_a_template_that_does_not_use_them_is_told_by_a_400(app, cluster, param):
    """The demo model's template knows messages only."""
    body = {"model": "m", "messages": [USER], param: [TOOL if param == "tools" else {"text": "x"}]}
    answer = await ask(app, "POST", "/v1/chat/completions", body)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "unsupported", param)


@pytest.mark.parametrize(
    ("kwargs", "ignored"),
    [
        ({"enable_thinking": False, "thinking": False}, []),  # one wish, by two names
        ({"enable_thinking": False, "thinking": True}, ["thinking"]),
        ({"mood": "merry", "nobody": None}, []),
        ({"no-name": 1, "日本": 2}, ["no-name", "日本"]),
    ],
)
def test_what_a_template_used_is_not_called_ignored(tmp_path, kwargs, ignored):
    words = ModelTokenizer.load(save(tmp_path, byte_level(), CHATML + "{{ mood }}{{ enable_thinking }}"))
    assert words.overlooked(chat(chat_template_kwargs=kwargs)) == ignored


async def test_an_effort_is_for_a_template_that_knows_efforts(app, cluster, tmp_path):
    body = {"model": "m", "messages": [USER], "reasoning_effort": "low"}
    refused = await ask(app, "POST", "/v1/chat/completions", body)
    assert (refused.status, refused.json()["error"]["param"]) == (400, "reasoning_effort")
    directory = save(tmp_path, byte_level(), CHATML + "effort={{ reasoning_effort }}")
    where = str(directory)
    cluster.card = attrs.evolve(
        cluster.card, model_path=where, folder=where, created_s=2, vocab=1000, max_model_len=2000
    )
    answer = await ask(app, "POST", "/v1/chat/completions", body)
    assert answer.status == 200 and "x-hydra-ignored" not in answer.headers
    prompt = ModelTokenizer.load(directory).decode(cluster.requests[-1].prompt.tolist())
    assert prompt.endswith("effort=low")


async def test_a_strict_tool_is_used_and_said_not_to_be_strict(app, zoo_cluster):
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True, "description": None}}
    body = {"model": "m", "messages": [USER], "tools": [strict]}
    answer = await ask(app, "POST", "/v1/chat/completions", body)
    assert (answer.status, answer.headers["x-hydra-ignored"]) == (200, "tools.function.strict")
    plain = await ask(app, "POST", "/v1/chat/completions", {**body, "tools": [TOOL]})
    assert plain.status == 200 and "x-hydra-ignored" not in plain.headers
    one, other = (request.prompt.tolist() for request in zoo_cluster.requests)
    assert one == other, "it is a word to the server, and the model never sees it"


async def test_a_template_is_chosen_by_name(app, cluster):
    body = {"model": "m", "messages": [USER], "chat_template": "rag"}
    error = (await ask(app, "POST", "/v1/chat/completions", body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "chat_template") and "default" in error["message"]


@pytest.mark.parametrize(("path", "text"), [("/v1/completions", " fox"), ("/v1/chat/completions", "fox")])
async def test_the_first_space_of_a_completion_is_kept_and_of_an_answer_is_not(app, cluster, tmp_path, path, text):
    directory = save(tmp_path, byte_fallback("first"), "[INST]{{ messages[0].content }}[/INST]")
    words = ModelTokenizer.load(directory)
    ids = words.tokenizer.encode("fox", add_special_tokens=False).ids
    cluster.card = attrs.evolve(cluster.card, model_path=str(directory), folder=str(directory), vocab=1000)
    cluster.script = lambda request, at: tokens_of((ids[at],), "length" if at == len(ids) - 1 else None)
    body = {"model": "m", "messages": [USER], "prompt": "the quick brown", "max_tokens": len(ids)}
    if path == "/v1/completions":
        del body["messages"]
    else:
        del body["prompt"]
    choice = (await ask(app, "POST", path, body)).json()["choices"][0]
    assert (choice.get("text") or choice["message"]["content"]) == text


# ---------------------------------------------------------------- default sampling

PUBLISHED = DefaultSampling(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_what_is_left_out_is_as_the_publisher_would_have_it(kind):
    said = {"messages": [USER]} if kind == "chat" else {"prompt": "x"}
    body = {"model": "m", **said, "top_p": 1.0, "top_k": None, "temperature": 0}
    request = parse_request(kind, body).with_defaults(PUBLISHED)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.0, 1.0, 20), (
        "what is said holds, null says nothing"
    )
    assert (request.sampling.repetition_penalty, request.sampling.min_p) == (1.1, 0.0), "without an opinion, as OpenAI"


@pytest.mark.parametrize(("asked", "used"), [({}, 0.6), ({"temperature": 1.5}, 1.5)])
async def test_the_cluster_samples_so(app, cluster, asked, used):
    cluster.card = attrs.evolve(cluster.card, default_sampling=PUBLISHED)
    await ask(app, "POST", "/v1/chat/completions", {"model": "m", "messages": [USER], **asked})
    params = cluster.requests[0].params
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (used, 0.9, 20, 1.1)
