"""Templates with the constructs of published families, rendered beside transformers."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hydra.protocol.refusal import RefusalError
from hydra.text.chat_template.template import ChatTemplate

CHATS = {
    "one": [{"role": "user", "content": "  Hi there \n"}],
    "three": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 < 2 & 'x'?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue."},
        {"role": "user", "content": "Grüße 日本\n\nbye"},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "Köln", "n": 2}}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": '{"t": 3}'},
        {"role": "tool", "content": "second"},
        {"role": "assistant", "content": "Cold.", "reasoning_content": "so"},
        {"role": "user", "content": "ok"},
    ],
    "odd": [{"role": "assistant", "content": "I begin."}, {"role": "assistant", "content": ""}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks <there> & 'here'.",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "enum": ["a", "b"]}, "n": {"type": ["integer", "null"]}},
                "required": ["at"],
            },
        },
    },
    {"type": "function", "function": {"name": "wait", "description": "", "parameters": {}}},
]
DOCUMENTS = [{"title": "T", "text": "one\ntwo"}, {"title": "Ü", "text": ""}]

TEMPLATES = {
    "headers": (
        "{{- bos_token }}\n"
        "{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}\n"
        "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
        "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
        "{{- '<|start|>system<|end|>\\n\\n' }}\n{%- if tools is not none %}\n{{- 'Tools: ipython\\n' }}\n{%- endif %}\n"
        "{{- 'Today: ' + date_string + '\\n\\n' }}\n"
        "{%- if tools is not none and not tools_in_user %}\n    {%- for t in tools %}\n"
        "        {{- t | tojson(indent=4) }}\n        {{- '\\n\\n' }}\n    {%- endfor %}\n{%- endif %}\n{{- system }}\n"
        "{%- for message in messages %}\n"
        "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
        "        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n"
        "    {%- elif 'tool_calls' in message %}\n        {%- if not message.tool_calls|length == 1 %}\n"
        "            {{- raise_exception('only single calls') }}\n        {%- endif %}\n"
        "        {%- set call = message.tool_calls[0].function %}\n"
        '        {{- \'{"name": "\' + call.name + \'", "parameters": \' }}{{- call.arguments | tojson }}{{- "}" }}\n'
        "    {%- elif message.role == 'tool' %}\n        {{- '<|start|>ipython<|end|>' }}\n"
        "        {%- if message.content is mapping or message.content is not string %}\n"
        "            {{- message.content | tojson }}\n        {%- else %}{{- message.content }}{%- endif %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}\n"
    ),
    "strict turns": (
        "{%- if messages[0]['role'] == 'system' -%}{%- set system_message = messages[0]['content'] -%}"
        "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{{ bos_token }}{%- for message in loop_messages -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
        "{%- if message['role'] == 'user' -%}{%- if loop.last and system_message is defined -%}"
        "{{ '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}"
        "{%- else -%}{{ '[INST] ' ~ message.content ~ '[/INST]' }}{%- endif -%}"
        "{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "filters over messages": (
        "{%- set ns = namespace(index=0, found=false) %}\n"
        '{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}\n'
        "{%- for message in messages | rejectattr('role', 'equalto', 'tool') | rejectattr('tool_calls', 'defined') %}\n"
        "    {%- if message.role == 'user' and message == user_messages[-1] and tools is not none %}\n"
        "        {%- set ns.found = true %}[AVAILABLE] [\n"
        "        {%- for tool in tools %}\n            {%- set tool = tool.function %}\n"
        '            {{- \'{"type": "function", "function": {\' }}\n'
        '            {%- for key, val in tool.items() if key != "return" %}\n'
        "                {%- if val is string %}{{- '\"' + key + '\": \"' + val + '\"' }}\n"
        "                {%- else %}{{- '\"' + key + '\": ' + val|tojson }}{%- endif %}\n"
        '                {%- if not loop.last %}{{- ", " }}{%- endif %}\n            {%- endfor %}\n'
        '            {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}\n'
        "        {%- endfor %}\n    {%- endif %}\n"
        "    {{- message.role | upper }}:{{ message['content'] | replace('\\n', ' ') | title }}\n"
        "    {%- set ns.index = ns.index + 1 %}\n{%- endfor %}{{ ns.index }}{{ ns.found }}"
        "{{ messages | map(attribute='role') | unique | join(',') }}{{ messages | map('length') | sum }}"
        "{{ messages | groupby('role') | map('first') | list }}"
    ),
    "thinking": (
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and '
        "not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
        "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {%- set content = message.content %}\n        {%- set reasoning_content = '' %}\n"
        "        {%- if message.reasoning_content is string %}\n"
        "            {%- set reasoning_content = message.reasoning_content %}\n        {%- else %}\n"
        "            {%- if '</think>' in content %}\n"
        "                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n')"
        ".split('<think>')[-1].lstrip('\\n') %}\n"
        "                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "            {%- endif %}\n        {%- endif %}\n"
        "        {%- if loop.last or (not loop.last and reasoning_content) %}\n"
        "            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + "
        "'\\n</think>\\n\\n' + content.lstrip('\\n') }}\n"
        "        {%- else %}\n            {{- '<|im_start|>' + message.role + '\\n' + content }}\n        "
        "{%- endif %}\n"
        "        {%- if message.tool_calls %}\n            {%- for tool_call in message.tool_calls %}\n"
        "                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}\n"
        "                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}\n"
        '                {{- \'<tool_call>\\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}\n'
        "                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}\n"
        "                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}\n"
        "                {{- '}\\n</tool_call>' }}\n            {%- endfor %}\n        {%- endif %}\n"
        "        {{- '<|im_end|>\\n' }}\n"
        "    {%- elif message.role == 'tool' %}\n"
        "        {%- if loop.first or (messages[loop.index0 - 1].role != \"tool\") %}{{- '<|im_start|>user' }}"
        "{%- endif %}\n"
        "        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}\n"
        "        {%- if loop.last or (messages[loop.index0 + 1].role != \"tool\") %}{{- '<|im_end|>\\n' }}"
        "{%- endif %}\n"
        "    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
        "\n{%- endif %}"
    ),
    "generation blocks": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>\n"
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}\n"
        "{% else %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endif %}{% endfor %}"
    ),
    "turns by macro": (
        "{%- macro turn(role, content) -%}<start_of_turn>{{ role }}\n{{ content | trim }}<end_of_turn>\n"
        "{%- endmacro -%}"
        "{%- macro kind(value) -%}{%- if value is string -%}s{%- elif value is mapping -%}m"
        "{%- elif value is iterable -%}{% for v in value %}{{ kind(v) }}{% endfor %}{%- else -%}o{%- endif -%}"
        "{%- endmacro -%}"
        "{{ bos_token }}{% for m in messages %}"
        "{{ turn('model' if m['role'] == 'assistant' else m['role'], m['content']) }}"
        "{{ kind(m) }}{{ kind([m.content, [m.role, 1]]) }}{% endfor %}"
    )
    + "{% macro box() %}[{{ caller('in') }}]{% endmacro %}{% call(x) box() %}{{ x }}{% endcall %}",
    "breaks": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ m.role[0] }}"
        "{{ m.content[:3] }}{{ m.content[-2:] }}{{ m.content[1:9:2] }}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.revindex }}{{ loop.previtem.role }}"
        "{{ loop.nextitem.role }}"
        "{% else %}none{% endfor %}"
    ),
    "documents": (
        "{%- if documents %}{% for doc in documents %}{{ loop.index0 }}: {{ doc['title'] }}\n"
        "{% for key, value in doc | dictsort %}{{ key }}={{ value | indent(2, true) }};{% endfor %}{% endfor %}"
        "{% endif %}"
        "{%- if tools %}{% for tool in tools %}"
        "{{ tool.function.parameters.properties | default({}, true) | items | list }}"
        "{{ tool | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}{% endfor %}{% endif %}"
    ),
    "words": (
        "{% set x = 'a,B c' %}{{ x.split(',') }}{{ x.upper() }}{{ x | capitalize }}{{ x.find('B') }}{{ x.title() }}"
        "{{ x.rstrip('c') }}|{{ x.partition(',') }}{{ ' '.join(['1', '2']) }}{{ x.startswith('a') and not false }}"
        "{{ 7 // 2 }}{{ 7 / 2 }}{{ -7 % 3 }}{{ 2 ** 3 }}{{ 1.5 | round }}{{ '3' | int + 1 }}{{ 'x' * 3 }}"
        "{{ [1, 2] + [3] }}"
        "{{ {'a': none, 'b': true}.items() | list }}{{ none }}{{ true }}{{ undefined_thing }}{{ 1 if messages else 2 }}"
        "{{ 'b' in x }}{{ 'q' not in x }}{{ [3, 1, 2] | sort | join('-') }}{{ [1, 2, 3] | last }}{{ x | length }}"
        "{{ 'é<' | e }}{{ 'a/b é' | urlencode }}{{ x is string }}{{ 3 is odd }}{{ messages is sequence }}"
        "{{ 'ab' | list }}"
        "{{ dict(a=1, b=2) }}{{ joiner(', ')() }}{{ [1, 2] | map('string') | join }}{{ (1, 2, 3)[1:] }}"
        "{{ [[1]] == [[1]] }}"
        "{% set c = cycler('p', 'q') %}{{ c.next() }}{{ c.next() }}{{ range(1, 9, 3) | list }}{{ 1 < 2 < 3 }}"
        "{% with y = 2 %}{{ y }}{% endwith %}{% filter upper %}low{% endfilter %}{% set z %}in{{ x }}"
        "{% endset %}{{ z }}"
        "{% raw %}{{ raw }}{% endraw %}{# gone #}{{ 'x' ~ 1 ~ none ~ [1] }}{{ 5 | string | length }}"
        "{{ [1, 1] | unique | list }}"
    ),
    "a list of roles": "{% set roles = ['user', 'assistant', 'tool', 'system', 'x', 'y'] %}{% for m in messages %}"
    "{{ roles.index(m.role) }}{{ roles.count(m.role) }}{{ {m.role: 1, 'b': 2} }}{% endfor %}",
}


def by_transformers(source, chat, tools, documents, values):
    (text,), _ = render_jinja_template([chat], tools, documents, source, **values)
    return text


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "with tools and documents"])
def test_as_transformers_does(source, chat, extra):
    tools, documents = (TOOLS, DOCUMENTS) if extra else (None, None)
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": extra}
    if extra:
        values["enable_thinking"] = False
    try:
        expected = by_transformers(source, chat, tools, documents, values)
    except Exception as why:  # noqa: BLE001 - whatever it is, ours is a refusal
        expected = why
    seen = [{**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else m for m in chat]
    given = {**values, "tools": tools, "documents": documents}
    if isinstance(expected, Exception):
        with pytest.raises(RefusalError):
            ChatTemplate.of(source).render(seen, given)
    else:
        assert ChatTemplate.of(source).render(seen, given) == expected


def test_most_of_these_render():
    """The table would prove nothing if transformers refused it too."""
    refused = 0
    for source in TEMPLATES.values():
        for chat in CHATS.values():
            try:
                by_transformers(source, chat, TOOLS, DOCUMENTS, {"bos_token": "<s>", "eos_token": "</s>"})
            except Exception:  # noqa: BLE001
                refused += 1
    assert refused <= 5


@pytest.mark.parametrize("name", ["thinking", "strict turns", "generation blocks", "turns by macro"])
def test_the_longest_conversation_is_within_the_budget(name):
    turn = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "<think>a</think>" + "y" * 1000}]
    values = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "add_generation_prompt": True}
    assert len(ChatTemplate.of(TEMPLATES[name]).render(turn * 1024, values)) > 2_000_000


def test_a_template_is_compiled_once_and_its_budget_is_each_renderings_own():
    template = ChatTemplate.of("{% for i in range(90000) %}{% endfor %}{{ messages | length }}")
    assert {template.render([{"role": "user", "content": "x"}], {}) for _ in range(15)} == {"1"}
