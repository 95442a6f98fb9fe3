"""Chat templates: rendered as transformers renders them, and unable to hold the machine or to reach beyond."""

import time

import pytest

from hydra.http.template import ChatTemplate
from hydra.protocol.refusal import RefusalError


def render(source, **values):
    return ChatTemplate.of(source).render([{"role": "user", "content": "hi"}], values)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% endfor %}", "<user>hi"),
        ("{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{% endfor %}", "0True1"),
        ("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "10"),
        ("{{ messages[0].content.split('i')[0] ~ '-' ~ 'x' }}", "h-x"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f('a') }}", "[1][a]"),
        ("{{ ['a', 'b'] | join(', ') }}{{ {'a': 1} | tojson }}", 'a, b{"a": 1}'),
        ("{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}y{% break %}{% endfor %}", "y"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 'a%' if 7 % 2 else '' }}{{ 2 ** 3 }}{{ '-' * 3 }}{{ tools is defined }}", "a%8---False"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'x\ny' | indent(2) }}{{ 'a.b' | replace('.', '-') }}", "x\n  ya-b"),
    ],
)
def test_what_templates_use(source, text):
    assert render(source) == text


DOUBLING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
BOMBS = {
    "nested loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "a doubling sum": DOUBLING % ("'aaaaaaaa'", "ns.x + ns.x"),
    "a doubling join": DOUBLING % ("'aaaaaaaa'", "ns.x ~ ns.x"),
    "a doubling list": DOUBLING % ("[1,2]", "ns.x + ns.x"),
    "a doubling block": "{% set x0 %}aaaaaaaa{% endset %}"
    + "".join(f"{{% set x{i + 1} %}}{{{{ x{i} }}}}{{{{ x{i} }}}}{{% endset %}}" for i in range(40)),
    "multiplication": "{{ 'x' * 10000000000 }}",
    "a list multiplied": "{{ ([0] * 10000000000) | length }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a power tower": DOUBLING % ("999", "ns.x * ns.x"),
    "percent format": "{{ '%1000000000d' % 1 }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "the format filter": "{{ '%1000000000d' | format(1) }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "zfill": "{{ 'x'.zfill(10000000000) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "wordwrap": "{{ 'x' | wordwrap(1, wrapstring='y' * 1000000) }}",
    "batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "the replace filter": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 1000000 %}{{ x.join(x) }}",
    "the join filter": "{% set x = 'a' * 1000000 %}{{ x | join(x) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that branches": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a huge range": "{{ range(1000000000) | list }}",
    "lipsum": "{{ lipsum(100000) }}",
    "a date's width": "{{ strftime_now('%1000000000d') }}",
    "output": "{% for i in range(90000) %}{{ 'x' * 900 }}{% endfor %}",
    "encode": "{{ 'x'.encode() }}",
    "expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "a class": "{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
    "attr": "{{ '' | attr('__class__') | attr('__mro__') }}{{ (''|attr('__class__'))() }}",
    "a mutation": "{{ messages.append(1) }}",
    "an include": "{% include '/etc/passwd' %}",
    "nonsense": "{% for %}",
    "its own refusal": "{{ raise_exception('no system message, please') }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_cannot_hold_the_machine(source):
    """Each ends with a refusal, or with harmless text; the clock is only here to catch one that never ends."""
    began_s = time.process_time()
    try:
        text = render(source)
    except RefusalError as why:
        assert why.refusal.code == "invalid_value" and why.refusal.param == "messages"
    else:
        assert len(text) < 1000 and "class" not in text and "root:" not in text
    assert time.process_time() - began_s < 20.0
