"""Ways to break a model directory, each of which must be refused: at the latest when the first chat is rendered.

The base is a Llama as transformers saves it, with the demo model's words. Which file is broken, and how, is in the
label; `says` is what the refusal must name.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.unit.store.test_corruption import CASES, INDEX, WEIGHTS, Case, header, index, raw_header

SHARDS = tuple(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))


def all_cases() -> list[Case]:
    return [*CASES, *flips(), *cuts(), *twice(), *shapes(), *norms(), *places(), *tokenizers(), *templates()]


# ---------------------------------------------------------------- bytes


def flip(path: Path, name: str, at: int, bit: int) -> None:
    raw = bytearray((path / name).read_bytes())
    raw[at] ^= 1 << bit
    (path / name).write_bytes(raw)


def flip_part(path: Path, name: str, part: float, bit: int, after: bytes = b"") -> None:
    """One bit of the JSON in a file, `part` of the way from `after` to the end of what counts."""
    raw = (path / name).read_bytes()
    first, end = 0, len(raw)
    if name.endswith(".safetensors"):
        first, end = 8, 8 + int.from_bytes(raw[:8], "little")
    first = raw.index(after, first) + len(after)
    while raw[end - 1 : end].isspace():
        end -= 1
    flip(path, name, first + int(part * (end - first)), bit)


def flips() -> Iterator[Case]:
    for place in range(8):
        for bit in (0, 7):
            yield Case(f"length byte {place} bit {bit}", partial(flip, name=WEIGHTS, at=place, bit=bit), WEIGHTS)
    for number in range(48):
        broken = partial(flip_part, name=WEIGHTS, part=number / 48, bit=(0, 7, 4)[number % 3], after=b'"format":"pt"},')
        yield Case(f"header flip {number}", broken, "")
    for number in range(24):
        shard = SHARDS[number % 3]
        broken = partial(flip_part, name=shard, part=number / 24, bit=(0, 7)[number % 2], after=b'"format":"pt"},')
        yield Case(f"shard flip {number}", broken, "", base="sharded")
    for number in range(24):
        broken = partial(flip_part, name=INDEX, part=number / 24, bit=(0, 7)[number % 2], after=b'"weight_map"')
        yield Case(f"index flip {number}", broken, "", base="sharded")


def cut(path: Path, name: str, part: float) -> None:
    os.truncate(path / name, int(part * (path / name).stat().st_size))


def cut_header(path: Path, part: float) -> None:
    length = int.from_bytes((path / WEIGHTS).read_bytes()[:8], "little")
    os.truncate(path / WEIGHTS, 8 + int(part * length))


def cuts() -> Iterator[Case]:
    for number in range(8):
        yield Case(f"header cut at {number}/8", partial(cut_header, part=number / 8), WEIGHTS)
    for number in range(1, 8):
        yield Case(f"data cut at {number}/8", partial(cut, name=WEIGHTS, part=number / 8), WEIGHTS)
        shard = SHARDS[number % 3]
        yield Case(f"shard cut at {number}/8", partial(cut, name=shard, part=number / 8), shard, base="sharded")
    for number in range(1, 4):
        yield Case(f"index cut at {number}/4", partial(cut, name=INDEX, part=number / 4), INDEX, base="sharded")
        yield Case(f"config cut at {number}/4", partial(cut, name="config.json", part=number / 4), "config.json")
        yield Case(f"words cut at {number}/4", partial(cut, name="tokenizer.json", part=number / 4), "tokenizer.json")


# ---------------------------------------------------------------- what JSON says


def doubled(path: Path, name: str) -> None:
    """The first key of the outermost object, said again at its end."""
    file = path / name
    said = json.loads(file.read_text())
    key = next(iter(said))
    file.write_text(json.dumps(said)[:-1] + f", {json.dumps(key)}: {json.dumps(said[key])}}}")


def doubled_entry(path: Path, file: str, inner: str) -> None:
    """A key within an entry of the header, said twice with the same value."""
    raw = (path / file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].rstrip().replace(f'"{inner}":'.encode(), f'"{inner}":0,"{inner}":'.encode(), 1)
    (path / file).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def doubled_tensor(path: Path) -> None:
    raw = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    said = json.loads(raw[8 : 8 + length])
    name = "model.norm.weight"
    raw_header(
        path, json.dumps(said)[:-1].encode() + f', "{name}": {json.dumps(said[name])}}}'.encode(), raw[8 + length :]
    )


def twice() -> Iterator[Case]:
    yield Case("a tensor twice", doubled_tensor, "model.norm.weight")
    for inner in ("dtype", "shape", "data_offsets"):
        yield Case(f"{inner} twice", partial(doubled_entry, file=WEIGHTS, inner=inner), inner)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        yield Case(f"{name} twice", partial(doubled, name=name), "twice")
    yield Case("the index twice", partial(doubled, name=INDEX), "twice", base="sharded")


def swapped(entries: dict[str, Any], name: str) -> None:
    entries[name]["shape"].reverse()


def retyped(entries: dict[str, Any], name: str, dtype: str, factor: int) -> None:
    """Another dtype with the same number of bytes."""
    entries[name]["dtype"] = dtype
    entries[name]["shape"][0] = entries[name]["shape"][0] * factor // 4


def shapes() -> Iterator[Case]:
    layer = "model.layers.2."
    for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        full = f"{layer}{name}.weight"
        yield Case(f"{name} on its side", partial(header, change=partial(swapped, name=full)), full)
    for full in ("model.embed_tokens.weight", "lm_head.weight"):
        yield Case(f"{full} on its side", partial(header, change=partial(swapped, name=full)), full)
    for dtype, factor in (("F16", 8), ("BF16", 8), ("F64", 2), ("U8", 16), ("F8_E4M3", 16), ("I64", 2), ("BOOL", 16)):
        full = f"{layer}input_layernorm.weight"
        yield Case(
            f"a norm as {dtype}", partial(header, change=partial(retyped, name=full, dtype=dtype, factor=factor)), full
        )
    for dtype in ("I32", "U32"):
        full = f"{layer}self_attn.o_proj.weight"
        broken = partial(header, change=partial(retyped, name=full, dtype=dtype, factor=4))
        yield Case(f"a matrix as {dtype}", broken, full, "unsupported")


def poison(path: Path, name: str, item: bytes, at: int) -> None:
    raw = bytearray((path / WEIGHTS).read_bytes())
    length = int.from_bytes(raw[:8], "little")
    start = 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]
    raw[start + at * len(item) : start + (at + 1) * len(item)] = item
    (path / WEIGHTS).write_bytes(raw)


def norms() -> Iterator[Case]:
    names = [
        f"model.layers.{layer}.{kind}_layernorm.weight" for layer in (0, 4) for kind in ("input", "post_attention")
    ]
    for number, name in enumerate((*names, "model.norm.weight")):
        for label, value in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
            item = struct.pack("<f", value)
            yield Case(f"{label} in {name}", partial(poison, name=name, item=item, at=number), f"{name} holds NaN")


# ---------------------------------------------------------------- which files


def gone(path: Path, name: str) -> None:
    (path / name).unlink()


def linked_out(path: Path, name: str) -> None:
    outside = path.parent / "outside"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)


def dangling(path: Path, name: str) -> None:
    gone(path, name)
    (path / name).symlink_to("nowhere")


def circle(path: Path, name: str) -> None:
    gone(path, name)
    (path / name).symlink_to(name)


def folder(path: Path, name: str) -> None:
    gone(path, name)
    (path / name).mkdir()


def pipe(path: Path, name: str) -> None:
    gone(path, name)
    os.mkfifo(path / name)


def one_shard(weight_map: dict[str, str]) -> None:
    weight_map.update(dict.fromkeys(weight_map, SHARDS[0]))


def pickled_only(path: Path) -> None:
    gone(path, WEIGHTS)
    (path / "consolidated.00.pth").write_bytes(b"x")


def places() -> Iterator[Case]:
    ways: dict[str, Callable[..., None]] = {
        "gone": gone,
        "linked outside": linked_out,
        "dangling": dangling,
        "a circle of links": circle,
        "a folder": folder,
        "a pipe": pipe,
    }
    for label, way in ways.items():
        for shard in SHARDS:
            yield Case(f"{shard} {label}", partial(way, name=shard), shard, base="sharded")
        for name in ("config.json", "tokenizer.json"):
            yield Case(f"{name} {label}", partial(way, name=name), name)
        if way is not gone and way is not dangling:
            for name in ("generation_config.json", "tokenizer_config.json"):
                yield Case(f"{name} {label}", partial(way, name=name), name)
    yield Case(
        "one shard only in the index",
        lambda p: index(p, lambda m: m.update(dict.fromkeys(m, SHARDS[0]))),
        SHARDS[0],
        base="sharded",
    )
    yield Case(
        "an old pickle",
        lambda p: (gone(p, WEIGHTS), (p / "consolidated.00.pth").write_bytes(b"x")),
        "pickled",
        "unsupported",
    )


# ---------------------------------------------------------------- words


def words(path: Path, **changes: Any) -> None:
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def text(path: Path, content: str | bytes, name: str = "tokenizer.json") -> None:
    (path / name).write_bytes(content.encode() if isinstance(content, str) else content)


def sparse(path: Path, name: str, n_bytes: int) -> None:
    with (path / name).open("wb") as file:
        file.truncate(n_bytes)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def bomb(times: int, factor: str) -> dict[str, Any]:
    """Every letter becomes several, again and again."""
    return {"type": "Sequence", "normalizers": [replace("l", factor)] * times}


def tokenizers() -> Iterator[Case]:
    bodies: dict[str, str | bytes] = {
        "empty": "",
        "not JSON": "{nonsense}",
        "not UTF-8": b'{"a": "\xff"}',
        "a list": "[]",
        "a number": "7",
        "an empty object": "{}",
        "nested lists": '{"model":' + "[" * 300_000,
        "nested objects": '{"a":' * 300_000,
        "no model": '{"version": "1.0", "added_tokens": []}',
    }
    for label, body in bodies.items():
        yield Case(f"tokenizer: {label}", partial(text, content=body), "tokenizer.json")
    yield from changed_words()
    yield Case("tokenizer: too large", partial(sparse, name="tokenizer.json", n_bytes=1 << 40), "tokenizer.json")
    name = "tokenizer_config.json"
    for label, body in {"not JSON": "{", "a list": "[]", "nested": '{"a":' * 300_000, "not UTF-8": b"\xff"}.items():
        yield Case(f"tokenizer_config: {label}", partial(text, content=body, name=name), name)
    yield Case("tokenizer_config: too large", partial(sparse, name=name, n_bytes=1 << 40), name)
    name = "chat_template.jinja"
    yield Case("chat_template: too large", partial(sparse, name=name, n_bytes=1 << 40), name, "invalid_value")
    yield Case("chat_template: not UTF-8", partial(text, content=b"\xff", name=name), name, "invalid_value")


def changed_words() -> Iterator[Case]:
    changes: dict[str, dict[str, Any]] = {
        "unknown model": {"model": {"type": "Pickle", "vocab": {}}},
        "merges of unknown tokens": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
        "a negative id": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        "an id beyond 32 bits": {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}},
        "a vocabulary of text": {"model": {"type": "BPE", "vocab": "abc", "merges": []}},
        "no unknown token where it says": {"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}},
        "a broken expression": {
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
        },
        "a charsmap of rubbish": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
        "an unknown normalizer": {"normalizer": {"type": "Exec", "command": "true"}},
        "a normalizer that doubles": {"normalizer": bomb(60, "ll")},
        "a normalizer that explodes": {"normalizer": bomb(8, "l" * 10_000)},
        "a huge replacement": {"normalizer": bomb(2, "l" * 1_000_000)},
    }
    for label, change in changes.items():
        yield Case(f"tokenizer: {label}", partial(words, **change), "tokenizer.json")


def templates() -> Iterator[Case]:
    doubling = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
    sources = {
        "nested loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "deep loops": "".join(f"{{% for x{i} in range(30) %}}" for i in range(12)) + "x" + "{% endfor %}" * 12,
        "a doubling sum": doubling % ("'aaaaaaaa'", "ns.x + ns.x"),
        "a doubling join": doubling % ("'aaaaaaaa'", "ns.x ~ ns.x"),
        "a doubling list": doubling % ("[1,2]", "ns.x + ns.x"),
        "multiplication": "{{ 'x' * 10000000000 }}",
        "a list multiplied": "{{ ([0] * 10000000000) | length }}",
        "a power": "{{ 9 ** 9 ** 9 }}",
        "percent format": "{{ '%1000000000d' % 1 }}",
        "str.format": "{{ '{:1000000000}'.format(1) }}",
        "ljust": "{{ 'x'.ljust(10000000000) }}",
        "the join filter": "{% set x = 'a' * 1000000 %}{{ x | join(x) }}",
        "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
        "a macro that calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "a macro that branches": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "a recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "a huge range": "{{ range(1000000000) | list }}",
        "output": "{% for i in range(90000) %}{{ 'x' * 900 }}{% endfor %}",
        "a mutation": "{{ messages.append(1) }}",
        "an include": "{% include '/etc/passwd' %}",
        "nonsense": "{% for %}",
        "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "many blocks": "{% if 1 %}" * 5000,
        "globals": "{{ raise_exception.__globals__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
    }  # fmt: skip
    for label, source in sources.items():
        broken = partial(text, content=source, name="chat_template.jinja")
        yield Case(f"template: {label}", broken, "template", "invalid_value")
