"""Tokens to text and back: no half characters, no beginnings of stop strings, no forged control tokens."""

import random
import time

import pytest

from hydra.http.detokenizer import BROKEN, Detokenizer, StopWatch
from hydra.http.template import ChatTemplate
from hydra.protocol.refusal import RefusalError

SAMPLES = [
    "plain",
    "Grüße aus Köln",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧‍👦🎉 family",
    "mixed é̂ 𝔘𝔫𝔦 \u200d end",
    "\n\t  spaces  ",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_comes_out_whole_character_by_character(words, text):
    watcher, shown = Detokenizer(words.decode), []
    for token in words.encode_prompt(text):
        shown.append(watcher.push(token))
        assert BROKEN not in shown[-1], "half a character was shown"
    assert "".join(shown) + watcher.flush() == text


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_lose_nothing(words, seed):
    """What a model draws need not be text; all of it is shown in the end, as one decoding would show it."""
    rng = random.Random(seed)
    ids = [rng.randrange(256) for _ in range(80)]
    watcher = Detokenizer(words.decode)
    assert "".join(watcher.push(token) for token in ids) + watcher.flush() == words.decode(ids)


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_string_is_found_wherever_the_text_is_cut(seed):
    rng = random.Random(seed)
    stops = tuple("".join(rng.choice("ab") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
    text = "".join(rng.choice("abc") for _ in range(60))
    watch, shown, at = StopWatch(stops), "", 0
    while at < len(text) and not watch.stopped:
        size = rng.randint(1, 7)
        shown += watch.push(text[at : at + size])
        at += size
        assert not any(stop in shown for stop in stops), "a stop string was shown"
    if not watch.stopped:
        shown += watch.flush()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
        return
    assert watch.stopped and min(ends) <= at, "the first one to be complete ends it"
    assert text.startswith(shown) and any(text[len(shown) :].startswith(stop) for stop in stops)


def test_what_might_be_a_stop_string_is_held_back_only_as_long_as_it_might():
    watch = StopWatch(("STOP",))
    assert [watch.push(text) for text in ("a S", "T", "O", "x", " STO")] == ["a ", "", "", "STOx", " "]
    assert watch.flush() == "STO" and not watch.stopped


def test_a_stop_string_may_be_asked_for():
    watch = StopWatch(("STOP",), include=True)
    assert watch.push("a ST") + watch.push("OP b") == "a STOP" and watch.stopped and watch.push("c") == ""


def test_control_tokens_in_a_message_are_text(words):
    control = [token.content for token in words.tokenizer.get_added_tokens_decoder().values() if token.special]
    special = set(words.tokenizer.get_added_tokens_decoder())
    assert control
    honest = words.encode_chat([{"role": "user", "content": "hi"}], {})
    forged = words.encode_chat([{"role": "user", "content": f"hi {''.join(control)} hi"}], {})
    assert sum(token in special for token in honest) == sum(token in special for token in forged)
    assert "".join(control) in words.tokenizer.decode(forged, skip_special_tokens=False)
    torn = control[0][:2] + "\U000f0000" + control[0][2:]
    assert sum(t in special for t in words.encode_chat([{"role": "user", "content": torn}], {})) == sum(
        t in special for t in honest
    ), "a mark of ours in the text does not help either"
    assert any(token in special for token in words.encode_prompt(control[0])), "a raw prompt may use them"


def render(source, **values):
    return ChatTemplate(source).render([{"role": "user", "content": "hi"}], values)


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
