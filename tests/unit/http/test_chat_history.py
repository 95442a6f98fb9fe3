"""Earlier turns as clients send them back: null contents, refusals, the older API's calls, a model's own mistakes."""

import pytest

from hydra.http.openai_request import parse_request
from hydra.protocol.refusal import RefusalError

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


def history(*messages):
    return parse_request("chat", {"model": "m", "messages": [USER, *messages]}).chat.messages[1:]


def calls_of(message):
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None},
        {},
        {"content": None, "tool_calls": []},
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [CALL]},
        {"content": None, "refusal": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"content": [], "tool_calls": [CALL]},
    ],
    ids=str,
)
def test_an_assistant_that_said_nothing_said_the_empty_string(turn):
    (message,) = history({"role": "assistant", **turn})
    assert message["content"] == ""


def test_a_tool_that_has_nothing_to_tell_said_the_empty_string():
    for turn in ({"role": "tool", "tool_call_id": "c1"}, {"role": "function", "name": "look"}):
        assert history({**turn, "content": None})[0]["content"] == ""


@pytest.mark.parametrize("role", ["user", "system", "developer"])
@pytest.mark.parametrize("turn", [{"content": None}, {}, {"content": 5}, {"content": {}}, {"content": False}], ids=str)
def test_nobody_else_may_say_nothing(role, turn):
    with pytest.raises(RefusalError) as refused:
        history({"role": role, **turn})
    assert (refused.value.refusal.code, refused.value.refusal.param) == ("invalid_value", "messages")


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not."),
        ({"content": [{"type": "text", "text": "Well. "}, {"type": "refusal", "refusal": "No."}]}, "Well. No."),
        ({"content": "Well.", "refusal": "No."}, "Well.\nNo."),
        ({"content": "Well.", "refusal": ""}, "Well."),
    ],
    ids=str,
)
def test_a_refusal_is_what_the_assistant_said(turn, content):
    assert history({"role": "assistant", **turn}) == ({"role": "assistant", "content": content},)


def test_refusals_are_the_assistants_alone():
    part = {"type": "refusal", "refusal": "no"}
    for message in (USER | {"refusal": "no"}, USER | {"content": [part]}):
        with pytest.raises(RefusalError):
            history(message)


@pytest.mark.parametrize(
    ("part", "what", "sense"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image", "vision"),
        ({"type": "input_image", "image_url": "http://x/y.png"}, "image", "vision"),
        ({"type": "image"}, "image", "vision"),
        ({"type": "video_url", "video_url": {"url": "http://x/y.mp4"}}, "video", "vision"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio", "audio"),
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_what_a_model_would_see_or_hear_is_refused_as_that(role, part, what, sense):
    with pytest.raises(RefusalError) as refused:
        history({"role": role, "content": [{"type": "text", "text": "What is this?"}, part]})
    refusal = refused.value.refusal
    assert (refusal.code, refusal.param) == ("invalid_value", "messages")
    assert f"messages[1].content: {what} parts" in refusal.message
    assert f"the model's {sense} part is not served" in refusal.message


@pytest.mark.parametrize("kind", ["file", 3, ["image"], None])
def test_other_parts_are_refused_as_before(kind):
    with pytest.raises(RefusalError, match="only text parts"):
        history(USER | {"content": [{"type": kind}]})


def test_calls_of_the_older_api_are_calls():
    messages = history(
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": "x"}'}},
        {"role": "function", "name": "look", "content": "seen"},
        {"role": "assistant", "content": "so", "function_call": {"name": "wait", "arguments": ""}},
        {"role": "function", "name": "wait", "content": "waited"},
    )
    assert calls_of(messages[0]) == [("call00001", "look", '{"at": "x"}')]
    assert messages[1] == {"role": "tool", "content": "seen", "name": "look", "tool_call_id": "call00001"}
    assert calls_of(messages[2]) == [("call00002", "wait", "")]
    assert messages[3]["tool_call_id"] == "call00002" and messages[2]["content"] == "so"


def test_made_up_ids_are_nobodys_and_results_find_their_calls():
    own = CALL | {"id": "call00001"}
    messages = history(
        {"role": "assistant", "tool_calls": [own, own | {"id": "c2"}]},
        {"role": "tool", "tool_call_id": "call00001", "content": "first"},
        {"role": "function", "name": "look", "content": "second"},
        {"role": "function", "name": "nobody", "content": "third"},
    )
    assert [message.get("tool_call_id") for message in messages[1:]] == ["call00001", "c2", "call00002"]


def test_a_call_in_both_shapes_is_one_call():
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL], "function_call": CALL["function"]}
    request = parse_request("chat", {"model": "m", "messages": [USER, turn]})
    assert calls_of(request.chat.messages[1]) == [("c1", "look", '{"at": "x"}')]
    assert request.ignored == ("messages.function_call",)


@pytest.mark.parametrize("arguments", ["{", "", "  ", "null", "[1]", "5", '"x"', '{"a":' * 500 + "1" + "}" * 500, None])
def test_no_arguments_lock_a_conversation(arguments):
    """The model wrote them; the client can only send them back."""
    function = {"name": "look", "arguments": arguments}
    for turn in ({"tool_calls": [{"id": "c1", "function": function}]}, {"function_call": function}):
        (message,) = history({"role": "assistant", "content": None, **turn})
        assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": arguments or ""}


def test_nor_does_a_name_that_the_model_made_up():
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "look at: it", "arguments": "{}"}}]}
    assert history(turn)[0]["tool_calls"][0]["function"]["name"] == "look at: it"


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "function_call": {}},
        {"role": "assistant", "function_call": []},
        {"role": "assistant", "function_call": {"name": "look", "arguments": 5}},
        {"role": "user", "content": "x", "function_call": {"name": "look", "arguments": ""}},
        {"role": "function", "content": "x"},
        {"role": "function", "name": 5, "content": "x"},
        {"role": "assistant", "tool_calls": ""},
        {"role": "assistant", "tool_calls": 0},
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "x"}}]},
        {"role": "assistant", "refusal": 5},
        {"role": "assistant", "content": [{"type": "refusal", "text": "x"}]},
        {"role": "god", "content": "x"},
    ],
    ids=str,
)
def test_what_no_client_means_is_refused(turn):
    with pytest.raises(RefusalError) as refused:
        history(turn)
    assert refused.value.refusal.param == "messages"


def test_what_a_message_holds_and_nobody_reads_is_named():
    turn = {"role": "assistant", "content": "x", "audio": {"id": "a"}, "annotations": [], "prefix": True}
    call = {"role": "assistant", "tool_calls": [CALL | {"index": 0, "extra_content": {"a": 1}}]}
    request = parse_request("chat", {"model": "m", "messages": [USER, turn, call]})
    assert request.ignored == ("messages.audio", "messages.prefix", "messages.tool_calls.extra_content")
