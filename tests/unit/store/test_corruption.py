"""Broken and lying model directories: each is refused with its code, and the refusal names the culprit."""

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_dir import describe

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q = "model.layers.1.self_attn.q_proj.weight"
K = "model.layers.1.self_attn.k_proj.weight"


@attrs.frozen
class Case:
    """A directory to copy, a way to break it, and what must come of it."""

    label: str
    broken: Callable[[Path], object]
    names: str
    code: str = "bad_model"
    base: str = "single"


def config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def header(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the header and leaves the data as it is."""
    raw = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    change(entries)
    raw_header(path, json.dumps(entries).encode(), raw[8 + length :])


def raw_header(path: Path, new: bytes, data: bytes = b"") -> None:
    (path / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + data)


def entry(path: Path, **changes: Any) -> None:
    header(path, lambda entries: entries[Q].update(changes))


def overlap(entries: dict) -> None:
    entries[Q]["data_offsets"] = [0, 4096]


def gap(entries: dict) -> None:
    del entries[Q]


def duplicate(path: Path) -> None:
    raw_header(path, b'{"twin":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"twin":{}}')


def resize(path: Path, by: int) -> None:
    raw = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(raw[:by] if by < 0 else raw + b"\0" * by)


def move(path: Path, name: str, target: str) -> None:
    """Puts one of the shards behind a link."""
    real = (path / target).resolve()
    (path / name).rename(real)
    (path / name).symlink_to(target)


def index(path: Path, change: Callable[[dict], object]) -> None:
    file = path / INDEX
    document = json.loads(file.read_text())
    change(document["weight_map"])
    file.write_text(json.dumps(document))


def pickled(path: Path) -> None:
    (path / WEIGHTS).rename(path / "pytorch_model.bin")


def text(path: Path, content: str, name: str = "config.json") -> None:
    (path / name).write_text(content)


def fifo(path: Path) -> None:
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def renamed(entries: dict) -> None:
    entries["model.layers.1.self_attn.q_norm.weight"] = entries.pop(Q)


SHARD = "model-00002-of-00003.safetensors"
CASES = [
    # the file of weights
    Case("empty file", lambda p: (p / WEIGHTS).write_bytes(b""), WEIGHTS),
    Case("cut in the length", lambda p: (p / WEIGHTS).write_bytes(b"\1\0\0"), "cut short"),
    Case("cut in the header", lambda p: os.truncate(p / WEIGHTS, 200), "cut short"),
    Case("cut in the data", partial(resize, by=-1), "cut short"),
    Case("more behind the data", partial(resize, by=3), "3 bytes behind"),
    Case("huge header", lambda p: (p / WEIGHTS).write_bytes(b"\xff" * 64), "18446744073709551615"),
    Case("header not an object", lambda p: raw_header(p, b"[1, 2]"), "'{'"),
    Case("header padded in front", lambda p: raw_header(p, b" {}"), "'{'"),
    Case("header not JSON", lambda p: raw_header(p, b"{nonsense}"), "not valid JSON"),
    Case("header not UTF-8", lambda p: raw_header(p, b'{"\xff": 1}'), "not valid JSON"),
    Case("header nested deeply", lambda p: raw_header(p, b'{"a":' + b"[" * 500_000), "nested too deeply"),
    Case("duplicate tensor", duplicate, "'twin' appears twice"),
    Case("too many tensors", lambda p: raw_header(p, json.dumps(dict.fromkeys(range(100_001))).encode()), "100001"),
    Case("overlap", partial(header, change=overlap), "overlap"),
    Case("gap", partial(header, change=gap), "gap"),
    Case("outside the file", lambda p: entry(p, data_offsets=[2**40, 2**40 + 4096]), Q),
    Case("backwards", lambda p: entry(p, data_offsets=[4096, 0]), Q),
    Case("negative", lambda p: entry(p, data_offsets=[-4096, 0]), Q),
    Case("offsets as text", lambda p: entry(p, data_offsets=["0", "4096"]), Q),
    Case("overflowing shape", lambda p: entry(p, shape=[2**63, 2**63, 0, 2**63, 1]), Q),
    Case("wrapping shape", lambda p: entry(p, shape=[2**62 + 256, 4]), Q),
    Case("true for a dimension", lambda p: entry(p, shape=[True, 1024]), Q),
    Case("extra field", lambda p: entry(p, shard="x"), Q),
    Case("unknown dtype", lambda p: entry(p, dtype="Q4_K"), "Q4_K"),
    Case("integer dtype", lambda p: entry(p, dtype="I32"), Q, "unsupported"),
    Case("wrong item size", lambda p: entry(p, dtype="F16"), Q),
    Case("wrong shape", lambda p: entry(p, shape=[16, 64]), Q),
    Case("transposed", lambda p: header(p, lambda e: e[K].update(shape=[32, 16])), K),
    Case("missing tensor", partial(header, change=lambda e: e.update(other=e.pop(Q))), Q),
    Case("a tensor nobody asked for", partial(header, change=renamed), "q_norm"),
    Case("endless name", lambda p: header(p, lambda e: e.update({"x" * 9999: {}})), "xxx"),
    # which files
    Case("no weights", lambda p: (p / WEIGHTS).unlink(), INDEX),
    Case("pickled weights", pickled, "Convert them to safetensors", "unsupported"),
    Case("weights are a directory", lambda p: ((p / WEIGHTS).unlink(), (p / WEIGHTS).mkdir()), "regular file"),
    Case("link outside", lambda p: move(p, WEIGHTS, "../elsewhere"), "outside the model directory"),
    Case("shard linked outside", lambda p: move(p, SHARD, "../elsewhere"), SHARD, base="sharded"),
    Case("config linked outside", lambda p: move(p, "config.json", "../elsewhere"), "config.json"),
    Case("missing shard", lambda p: (p / SHARD).unlink(), SHARD, base="sharded"),
    Case("path in the index", lambda p: index(p, lambda m: m.update({Q: "../x.safetensors"})), Q, base="sharded"),
    Case("absolute path", lambda p: index(p, lambda m: m.update({Q: "/etc/passwd"})), Q, base="sharded"),
    Case("dots for a name", lambda p: index(p, lambda m: m.update({Q: ".."})), Q, base="sharded"),
    Case("half a surrogate", lambda p: index(p, lambda m: m.update({Q: "\ud800"})), Q, base="sharded"),
    Case("number for a file", lambda p: index(p, lambda m: m.update({Q: 7})), Q, base="sharded"),
    Case("wrong shard", lambda p: index(p, lambda m: m.update({Q: m["lm_head.weight"]})), Q, base="sharded"),
    Case("not in the index", lambda p: index(p, lambda m: m.pop(Q)), Q, base="sharded"),
    Case("index without map", lambda p: text(p, "{}", INDEX), "weight_map", base="sharded"),
    # the config
    Case("no config", lambda p: (p / "config.json").unlink(), "config.json"),
    Case("config is a pipe", fifo, "config.json"),
    Case("config not JSON", lambda p: text(p, "hidden_size: 3"), "config.json is not valid JSON"),
    Case("config a list", lambda p: text(p, "[]"), "config.json does not hold"),
    Case("config nested deeply", lambda p: text(p, '{"a":' * 200_000), "config.json is nested too deeply"),
    Case("config huge", lambda p: text(p, " " * 5_000_000), "config.json"),
    Case("config says it twice", lambda p: text(p, '{"vocab_size": 1, "vocab_size": 2}'), "vocab_size"),
    Case("config with NaN", lambda p: text(p, '{"rms_norm_eps": NaN}'), "NaN"),
    Case("text for a number", lambda p: config(p, hidden_size="32"), "hidden_size"),
    Case("true for a number", lambda p: config(p, num_hidden_layers=True), "num_hidden_layers"),
    Case("float for an int", lambda p: config(p, intermediate_size=48.0), "intermediate_size"),
    Case("zero layers", lambda p: config(p, num_hidden_layers=0), "num_hidden_layers"),
    Case("countless layers", lambda p: config(p, num_hidden_layers=10**9), "num_hidden_layers"),
    Case("null width", lambda p: config(p, hidden_size=None), "hidden_size"),
    Case(
        "no architecture, deep elsewhere",
        lambda p: text(p, '{"model_type":' + "[" * 800 + "]" * 800 + "}"),
        "arch",
        "unsupported",
    ),
    Case("uneven heads", lambda p: config(p, num_key_value_heads=3), "num_key_value_heads"),
    Case("odd head", lambda p: config(p, head_dim=7), "head_dim"),
    Case("zero epsilon", lambda p: config(p, rms_norm_eps=0), "rms_norm_eps"),
    Case("text for a bool", lambda p: config(p, tie_word_embeddings="no"), "tie_word_embeddings"),
    Case(
        "ends without end", lambda p: text(p, f'{{"eos_token_id": {[2] * 1025}}}', "generation_config.json"), "eos_tok"
    ),
    Case("more layers than stored", lambda p: config(p, num_hidden_layers=6), "model.layers.5."),
    Case("head missing", lambda p: config(p, tie_word_embeddings=False), "lm_head.weight", base="sharded_tied"),
    # known and not done
    Case("architecture", lambda p: config(p, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel", "unsupported"),
    Case("no architecture", lambda p: config(p, architectures=None), "architectures", "unsupported"),
    Case("model type", lambda p: config(p, model_type="mistral"), "mistral", "unsupported"),
    Case("activation", lambda p: config(p, hidden_act="gelu"), "gelu", "unsupported"),
    Case("quantised", lambda p: config(p, quantization_config={"quant_method": "aqlm"}), "AQLM", "unsupported"),
    Case("rope scaling", lambda p: config(p, rope_scaling={"rope_type": "longrope"}), "longrope", "unsupported"),
    Case("old rope scaling", lambda p: config(p, rope_scaling={"type": "mrope"}), "mrope", "unsupported"),
    Case(
        "rope parameters",
        lambda p: config(p, rope_parameters={"rope_type": "proportional"}),
        "proportional",
        "unsupported",
    ),
    Case("partial rope", lambda p: config(p, partial_rotary_factor=0.5), "partial_rotary_factor", "unsupported"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))
def test_broken_directories_are_refused(copy_of, case):
    path = copy_of(case.base)
    case.broken(path)
    with pytest.raises(RefusalError) as caught:
        describe(str(path))
    assert caught.value.refusal.code == case.code
    assert case.names in caught.value.refusal.message
    assert len(caught.value.refusal.message.encode()) < 1000


@pytest.mark.parametrize(("name", "span"), [(WEIGHTS, 2000), ("config.json", 700)])
def test_flipped_bytes_are_refused_or_harmless(copy_of, name, span):
    """Whatever stands there, a refusal is all that comes out."""
    path = copy_of("single")
    good = (path / name).read_bytes()
    dice = random.Random(11)
    refused = 0
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            raw[dice.randrange(span)] = dice.choice(b'0129"{}[],:-.eE\\\xff\0x')
        (path / name).write_bytes(raw)
        try:
            describe(str(path))
        except RefusalError:
            refused += 1
    assert refused > 100
