"""Chat templates: rendered as transformers renders them, and unable to hold the machine or to reach beyond."""

import re
import resource
import time

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.text.chat_template.template import ChatTemplate


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
SHARED = (
    "{%% set ns = namespace(x=[1], y=[1]) %%}{%% for i in range(60) %%}{%% set ns.x = [ns.x, ns.x] %%}"
    "{%% set ns.y = [ns.y, ns.y] %%}{%% endfor %%}%s"
)
DEEP_TUPLE = (
    "{%% set ns = namespace(x=(1,)) %%}{%% for j in range(2) %%}{%% for i in range(90000) %%}"
    "{%% set ns.x = (ns.x,) %%}{%% endfor %%}{%% endfor %%}%s"
)
KEPT = (
    "{%% set ns = namespace(kept=[]) %%}{%% set x = 'a' * 100000 %%}"
    "{%% for i in range(90000) %%}{%% set ns.kept = [ns.kept, %s] %%}{%% endfor %%}"
)
LOOPS = "{%% for i in range(90000) %%}{%% for j in range(9) %%}%s{%% endfor %%}{%% endfor %%}"
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
    "a value that shares its parts": SHARED % "{{ ns.x }}",
    "two that are compared": SHARED % "{{ ns.x == ns.y }}{{ ns.x in [ns.y] }}",
    "two that a test compares": SHARED % "{{ ns.x is eq ns.y }}{{ [ns.x] | select('equalto', ns.y) | list }}",
    "two that a loop compares": SHARED % "{% for i in [1, 2] %}{{ loop.changed([ns.x, ns.y][i - 1]) }}{% endfor %}",
    "shared parts as JSON": SHARED % "{{ ns.x | tojson }}",
    "shared parts by a filter": SHARED % "{{ ns.x | upper }}{{ [ns.x, ns.y] | sort }}{{ [ns.x, ns.y] | max }}",
    "shared parts, lazily": SHARED % "{{ [[ns.x], [ns.y]] | map('first') | map('list') | sort }}",
    "shared parts in a message": SHARED % "{{ raise_exception(ns.x) }}",
    "a deep tuple as a key": DEEP_TUPLE % "{{ {ns.x: 1} }}",
    "a deep tuple as an index": DEEP_TUPLE % "{{ {}[ns.x] }}",
    "a deep tuple made unique": DEEP_TUPLE % "{{ [ns.x] | unique | list }}",
    "a deep tuple in a mapping": DEEP_TUPLE % "{{ dict([(ns.x, 1)]) }}{{ ns.x in {'a': 1} }}{{ {}.get(ns.x) }}",
    "slices that are kept": KEPT % "x[1:]",
    "texts that are kept": KEPT % "x | upper",
    "pieces that are kept": KEPT % "x.split('a')",
    "literals that are kept": KEPT % ("[" + "i, " * 2000 + "]"),
    "text of its own in a loop": LOOPS % ("y" * 100_000),
    "text of its own in a block": "{% set x %}{% for i in range(90000) %}" + "y" * 100_000 + "{% endfor %}{% endset %}",
    "text of its own in a macro": "{% macro f() %}" + "y" * 100_000 + "{% endmacro %}" + LOOPS % "{% set y = f() %}",
    "long expressions in a loop": LOOPS % ("{% set y = [" + "messages[0].role, " * 2000 + "] %}"),
    "bytes of a number": "{{ (5).to_bytes(10000000000, 'big') }}",
    "digits of a round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "a number of many digits": "{{ ('f' * 8000000) | int(0, 16) * 3 }}",
    "a sum of lists": "{{ ([[1]] * 1000000) | sum(start=[]) | length }}",
    "long texts compared": LOOPS % "{% if 'a' * 100000 == 'a' * 100000 %}{% endif %}",
    "long texts searched": "{% set x = 'a' * 4000000 %}" + LOOPS % "{% if 'aab' in x %}{% endif %}",
    "ranges counted": LOOPS % "{{ range(100000).count(5) }}",
    "ranges filtered": LOOPS % "{% set y = range(100000) | reject | list %}",
    "ranges measured": LOOPS % "{% set y = range(100000) | max %}",
    "a lazy join": "{% set x = 'a' * 1000000 %}{{ ','.join(range(100000) | map('string') | map('replace', '1', x)) }}",
    "a wide indent": "{{ 'a\nb' | indent(1000000000) }}{{ [[1]] | tojson(indent=1000000000) }}",
    "wide separators": "{{ range(90000) | list | tojson(separators=['x' * 1000000, ':']) }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "sets of keys": "{{ {}.keys() - [1] }}",
    "a class's methods": "{{ dict.fromkeys(range(100000)) }}{{ namespace.mro() }}{{ cycler.mro() }}",
    "escaping": "{% autoescape true %}{{ '<' * 1000 }}{% endautoescape %}",
    "a namespace's insides": "{{ namespace(__class__=1) }}",
    "a namespace printed": "{{ namespace(a=1) }}",
    "a loop printed": "{% for i in [1] %}{{ loop }}{% endfor %}",
    "a macro's insides": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "a loop's insides": "{% for i in [1] %}{{ loop._iterable.gi_frame.f_globals }}{% endfor %}",
    "self": "{{ self._TemplateReference__context }}{{ self.__init__.__globals__ }}",
    "an import": "{% from '/etc/passwd' import x %}",
    "a base": "{% extends '/etc/passwd' %}",
    "a mapped attribute": "{{ [''] | map(attribute='__class__') | list }}{{ [''] | map('attr', '__class__') | list }}",
    "format, mapped": "{{ (['{0.__class__}'] | map(attribute='format') | first)('x') }}",
    "our own meters": "{{ [1] | map('weighed ') | list }}{{ ['x'] | map('literal ') | list }}",
    "nested parentheses": "{{ " + "(" * 60_000 + "1" + ")" * 60_000 + " }}",
    "nested lists": "{{ " + "[" * 60_000 + "]" * 60_000 + " }}",
    "nested ifs": "{% if a %}" * 9_000 + "{% endif %}" * 9_000,
    "nested loops in the source": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "a chain of ors": "{% if a %}" + "{% elif b %}x" * 9_000 + "{% endif %}",
    "a chain of sums": "{{ " + "1+" * 60_000 + "1 }}",
    "a chain of names": "{{ a" + ".b" * 60_000 + " }}",
    "braces": "{" * 120_000,
    "openings": "{{" * 60_000,
    "too long": " " * 140_000,
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_cannot_hold_the_machine(source):
    """Each ends with a refusal, or with harmless text; the clock is only here to catch one that never ends."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    try:
        text = render(source)
    except RefusalError as why:
        assert why.refusal.code == "invalid_value" and why.refusal.param == "messages" and len(str(why)) < 1200
        assert "makes no sense" in str(why) or not isinstance(why.__cause__, MemoryError), "a budget comes first"
    else:
        assert len(text) < 1000 and not re.search("class|root:| at 0x|module|function", text)
    assert time.process_time() - began_s < 20.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000, "KiB"
