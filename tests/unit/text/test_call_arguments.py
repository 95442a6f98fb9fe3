"""Arguments of earlier calls, in the form that each family's template writes them from; beside transformers."""

import json

import attrs
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hydra.http.openai_request import parse_request
from hydra.text.chat_template.call_arguments import RAW, CallForm
from hydra.text.chat_template.marks import MARKS
from hydra.text.chat_template.template import ChatTemplate
from hydra.text.tokenizer import ModelTokenizer
from hydra.text.trial import load_tried
from tests.unit.text.test_templates_oracle import TEMPLATES as PUBLISHED
from tests.unit.text.tokenizer_zoo import CHATML, byte_level, save

HERMES = (
    "{%- for message in messages %}\n"
    '    {%- if message.role == "assistant" and message.tool_calls %}\n'
    "        {{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}\n"
    "        {%- for tool_call in message.tool_calls %}\n"
    "            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}\n"
    '            {{- \'\\n<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \' }}\n'
    "            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}\n"
    "        {%- endfor %}{{- '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == 'tool' %}{{- '<tool_response>' + message.content + '</tool_response>' }}\n"
    "    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}\n"
    "{%- endfor %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '[INST] ' + message.content + '[/INST]' }}"
    "{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- '[TOOL_CALLS] [' }}"
    "{%- for tool_call in message.tool_calls %}{%- set out = tool_call.function | tojson %}{{- out[:-1] }}"
    "{%- if not tool_call.id is defined or tool_call.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- ', \"id\": \"' + tool_call.id + '\"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}"
    "{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}"
    "{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] {\"content\": ' + message.content | string + '}' }}"
    "{%- endif %}{%- endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<User>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' and 'tool_calls' in message %}{{ '<Assistant>' + message['content'] }}"
    "{% for tool in message['tool_calls'] %}{{ '<call>' + tool['type'] + '<sep>' + tool['function']['name'] + '\\n' + "
    "'```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<end>' }}{% endfor %}"
    "{% elif message['role'] == 'tool' %}{{ '<output>' + message['content'] }}"
    "{% else %}{{ '<Assistant>' + message['content'] }}{% endif %}{% endfor %}"
)
CALLS_OF_NONE = DEEPSEEK.replace("'tool_calls' in message %}{{ '<Assistant>' + message['content'] }}",
                                 "message['content'] is none %}{{ '<Assistant>' }}")  # fmt: skip
XML = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}{% for call in message.tool_calls or [] %}"
    "<function={{ call.function.name }}>{% for key, value in call.function.arguments.items() %}"
    "<parameter={{ key }}>{{ value }}</parameter>{% endfor %}</function>{% endfor %}{% endfor %}"
)
PRINTED = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments }}){% endfor %}{% endfor %}"
)
STRICT = (
    "{% if messages[0].role != 'system' and false %}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% if m.tool_calls %}"
    "{{ m.tool_calls[0].function.arguments | trim }}{% endif %}{% endfor %}"
)
FAMILIES = {
    "llama 3": (PUBLISHED["headers"].replace("'Today: ' + date_string", "'Today: '"), CallForm("object")),
    "hermes": (HERMES, CallForm("object")),
    "mistral": (MISTRAL, CallForm("object")),
    "qwen 3": (PUBLISHED["thinking"], CallForm("either")),
    "deepseek": (DEEPSEEK, CallForm("text")),
    "calls of none": (CALLS_OF_NONE, CallForm("text", content=None)),
    "xml": (XML, CallForm("object")),
    "printed": (PRINTED, CallForm("text")),
    "strict": (STRICT, CallForm("text")),
    "no calls": (CHATML, CallForm("object")),
    "refuses all": ("{{ raise_exception('no') }}{{ messages[0].tool_calls }}", CallForm("object")),
    "a bomb for texts": (
        HERMES.replace("{{- tool_call.arguments", "{%- if tool_call.arguments is string %}{% for i in range(90000) %}"
                       "{% for j in range(90000) %}{% endfor %}{% endfor %}{% endif %}{{- tool_call.arguments"),
        CallForm("object"),
    ),
}  # fmt: skip
TEXT_ARGUMENTS = '{"at": "Köln",  "n": 2}'


@pytest.mark.parametrize(("source", "form"), FAMILIES.values(), ids=FAMILIES)
def test_the_form_is_found_by_trying(source, form):
    assert ChatTemplate.of(source).call_form == form


def chat_of(arguments=TEXT_ARGUMENTS, **turn):
    call = {"id": "call00007", "type": "function", "function": {"name": "look", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call], **turn},
        {"role": "tool", "tool_call_id": "call00007", "content": "cold"},
    ]
    return parse_request("chat", {"model": "m", "messages": messages, "add_generation_prompt": False}).chat


def rendered(directory, source, chat):
    words = ModelTokenizer.load(save(directory, byte_level(), source))
    return MARKS.sub("", words.render(chat))


@pytest.mark.parametrize("name", ["llama 3", "hermes", "mistral", "qwen 3", "deepseek", "xml", "printed"])
def test_an_earlier_call_is_written_as_transformers_writes_it(tmp_path, name):
    """transformers leaves the form to its caller: it is given the one that the family's model card gives."""
    source, form = FAMILIES[name]
    chat = chat_of()
    given = [dict(message) for message in chat.messages]
    arguments = TEXT_ARGUMENTS if form.arguments == "text" else json.loads(TEXT_ARGUMENTS)
    function = {"name": "look", "arguments": arguments}
    given[1] = {**given[1], "tool_calls": [{"id": "call00007", "type": "function", "function": function}]}
    (expected,), _ = render_jinja_template(
        [given], None, None, source, bos_token="<s>", eos_token="</s>", add_generation_prompt=False
    )
    assert rendered(tmp_path, source, chat) == expected and "Köln" in expected


ODD = {
    "no JSON": ('{"at": ', '{"at": ', {RAW: '{"at": '}),
    "a list": ("[1, 2]", "[1, 2]", {RAW: "[1, 2]"}),
    "a string": ('"x"', '"x"', {RAW: '"x"'}),
    "a number": ("5", "5", {RAW: "5"}),
    "null": ("null", "null", {}),
    "nothing": ("", "{}", {}),
    "blanks": (" \n", "{}", {}),
    "nested without end": ('{"a":' * 500 + "1" + "}" * 500, '{"a":' * 500 + "1" + "}" * 500, None),
    "an object": ('{"b":1}', '{"b":1}', {"b": 1}),
    "a parsed object": ({"b": "ü"}, '{"b": "ü"}', {"b": "ü"}),
}


@pytest.mark.parametrize(("arguments", "text", "held"), ODD.values(), ids=ODD)
def test_whatever_a_model_wrote_can_be_shown_again(arguments, text, held):
    held = {RAW: arguments} if held is None else held
    assert CallForm("text").written(arguments) == text
    assert CallForm("object").written(arguments) == held
    assert CallForm("either").written(arguments) == (arguments if RAW in held else held)


@pytest.mark.parametrize("name", ["llama 3", "hermes", "mistral", "qwen 3", "deepseek", "xml", "printed"])
@pytest.mark.parametrize("arguments", ["{", "[1]", "null", "", "5"])
def test_no_arguments_lock_a_conversation_whatever_the_template(tmp_path, name, arguments):
    assert "look" in rendered(tmp_path, FAMILIES[name][0], chat_of(arguments))


def test_the_older_apis_calls_go_through_a_template_that_wants_ids_of_nine_letters(tmp_path):
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": "x"}'}},
        {"role": "function", "name": "look", "content": "cold"},
    ]
    chat = parse_request("chat", {"model": "m", "messages": messages}).chat
    text = rendered(tmp_path, MISTRAL, chat)
    assert '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "x"}, "id": "call00001"}]' in text
    assert text.endswith('[TOOL_RESULTS] {"content": cold}')


def test_a_turn_that_says_something_keeps_it_where_calls_go_with_none(tmp_path):
    with_words = rendered(tmp_path / "a", CALLS_OF_NONE, chat_of(content="Let me see."))
    assert "Let me see." in with_words
    assert "<call>function<sep>look" in rendered(tmp_path / "b", CALLS_OF_NONE, chat_of())


def test_each_template_of_a_model_is_tried_before_it_is_asked_for(tmp_path):
    named = [{"name": "default", "template": HERMES}, {"name": "glued", "template": DEEPSEEK}]
    words = load_tried(save(tmp_path, byte_level(), named))
    glued, default = words.render(attrs.evolve(chat_of(), template="glued")), words.render(chat_of())
    assert TEXT_ARGUMENTS in MARKS.sub("", glued)
    assert '"arguments": {"at": "Köln", "n": 2}' in MARKS.sub("", default)


def test_a_template_is_tried_once():
    rendered_chats = []

    class Counting(ChatTemplate):
        def render(self, messages, values):
            rendered_chats.append(messages)
            return super().render(messages, values)

    made = ChatTemplate.of(HERMES)
    template = Counting(*(getattr(made, field.name) for field in attrs.fields(ChatTemplate)))
    assert template.call_form is template.call_form and len(rendered_chats) == 2, "with the text, with the object"
