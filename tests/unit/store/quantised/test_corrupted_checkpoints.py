"""Quantised directories that lie: each is refused within the time, with the file and the tensor or the key named."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from hydra.protocol.refusal import RefusalError
from hydra.store.models.model_dir import describe
from tests.unit.store.quantised.checkpoints import CHECKPOINTS

REFUSED_WITHIN_S = 2.0  # of computing
VARIANTS_MIN = 250
WEIGHTS = "model.safetensors"
MODULE = "model.layers.1.mlp.down_proj"
KINDS = ["packed", "packed, with zeros", "packed, ordered", "int8", "float8 by row", "float8 in tiles", "nvfp4", "fp8",
         "gptq, ordered", "auto-round as awq", "awq", "nf4"]  # fmt: skip
ITEM_BYTES = {"I32": 4, "F16": 2, "F32": 4, "I64": 8, "U8": 1, "I8": 1, "F8_E4M3": 1}


@attrs.frozen
class Case:
    label: str
    base: str
    broken: Callable[[Path], None]
    names: tuple[str, ...]


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The header changed, and the data laid out anew as it says, of zeros: a file that is whole."""
    with (path / WEIGHTS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    change(header)
    reached = 0
    for name, entry in header.items():
        if name != "__metadata__":
            length = ITEM_BYTES.get(entry["dtype"], 1)
            for side in entry["shape"]:
                length *= side
            entry["data_offsets"] = [reached, reached + length]
            reached += length
    raw = json.dumps(header).encode()
    (path / WEIGHTS).unlink()
    with (path / WEIGHTS).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + reached)


def dropped(header: dict[str, Any], name: str) -> None:
    del header[name]


def reshaped(header: dict[str, Any], name: str, by: Callable[[list[int]], list[int]]) -> None:
    header[name]["shape"] = by(header[name]["shape"])


def retyped(header: dict[str, Any], name: str, dtype: str) -> None:
    header[name]["dtype"] = dtype


def added(header: dict[str, Any], name: str) -> None:
    header[name] = {"dtype": "F16", "shape": [4], "data_offsets": [0, 0]}


def sides(checkpoint: str) -> list[str]:
    return [suffix for _, suffix, *_ in CHECKPOINTS[checkpoint].sides]


RESHAPES: dict[str, Callable[[list[int]], list[int]]] = {
    "a number more": lambda shape: [*shape[:-1], shape[-1] + 1] if shape else [2],
    "half of it": lambda shape: [max(1, shape[0] // 2), *shape[1:]] if shape != [1] else [3],
    "one dimension more": lambda shape: [*shape, 2],
    "nothing": lambda shape: [0, *shape[1:]],
}


def of_tensors() -> Iterator[Case]:
    for base in KINDS:
        for suffix in sides(base):
            name = MODULE + suffix
            if suffix != ".weight_shape":  # which need not be there
                yield Case(
                    f"{base}: no {suffix}", base, partial(rewritten, change=partial(dropped, name=name)), (name,)
                )
            wrong = "F64" if suffix.strip(".") != "weight" else "BOOL"
            change = partial(retyped, name=name, dtype=wrong)
            yield Case(f"{base}: {suffix} as {wrong}", base, partial(rewritten, change=change), (WEIGHTS, name))
        for number, (label, by) in enumerate(RESHAPES.items()):
            suffix = sides(base)[number % len(sides(base))]
            change = partial(reshaped, name=MODULE + suffix, by=by)
            yield Case(f"{base}: {label} of {suffix}", base, partial(rewritten, change=change), (WEIGHTS, MODULE))
        change = partial(added, name=f"{MODULE}.weight_of_another")
        yield Case(f"{base}: a tensor more", base, partial(rewritten, change=change), (f"{MODULE}.weight_of_another",))


def configured(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= changes
    (path / "config.json").write_text(json.dumps(config))


def weighted(path: Path, **changes: Any) -> None:
    """The arguments of the weights of a compressed-tensors config."""
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= changes
    (path / "config.json").write_text(json.dumps(config))


def of_group_sizes() -> Iterator[Case]:
    """Groups of a size that the scales do not have, and sizes that are none."""
    scales = {"gptq, ordered": ".scales", "awq": ".scales", "auto-round as awq": ".scales"}
    for base, suffix in scales.items():
        for size in (64, 32, -1, 7):
            broken = partial(configured, group_size=size)
            yield Case(f"{base}: groups of {size}", base, broken, (WEIGHTS, suffix))
        for size in (0, -2, 2**40, 10**400, "128", 1.5, True, [], {}):
            yield Case(f"{base}: groups of {size!r:.20}", base, partial(configured, group_size=size), ("group_size",))
    for size in (64, 7, 1 << 20):
        yield Case(f"packed: groups of {size}", "packed", partial(weighted, group_size=size), (WEIGHTS, "_scale"))
    for size in (0, -1, 2**40, "128", [1]):
        yield Case(f"packed: groups of {size!r}", "packed", partial(weighted, group_size=size), ("group_size",))
    for block in ([128], [0, 128], [128, 128, 128], "128", [64.0, 64], [10**30, 1], {}, [None, None], -1):
        broken = partial(configured, weight_block_size=block)
        yield Case(f"fp8: tiles of {block!r:.20}", "fp8", broken, ("weight_block_size",))
        broken = partial(weighted, block_structure=block)
        yield Case(f"float8: tiles of {block!r:.20}", "float8 in tiles", broken, ("block_structure",))
    for block in ([64, 64], [128, 32], [1, 1]):
        yield Case(f"fp8: tiles of {block}", "fp8", partial(configured, weight_block_size=block), (WEIGHTS, "_inv"))
    yield Case("fp8: one scale", "fp8", partial(configured, weight_block_size=None), (WEIGHTS, "_inv"))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def of_configs() -> Iterator[Case]:
    values: list[Any] = ["4", 4.0, 0, -4, 10**400, [4], {"a": 4}, True, 5]
    for base, key in (("gptq, ordered", "bits"), ("awq", "bits")):
        for value in values:
            yield Case(f"{base}: {key} {value!r:.20}", base, partial(configured, **{key: value}), (key,))
    for value in values:
        yield Case(f"packed: num_bits {value!r:.20}", "packed", partial(weighted, num_bits=value), ("num_bits",))
    lists = ("ignore", "modules_to_not_convert", "modules_to_not_convert", "llm_int8_skip_modules")
    for base, key in zip(("packed", "awq", "fp8", "nf4"), lists, strict=True):
        for value in (
            "lm_head",
            7,
            [7],
            [None],
            {"a": 1},
            nested(400),
            ["a"] * 30_000,
            ["re:(" if key == "ignore" else "("],
        ):
            yield Case(f"{base}: {key} {value!r:.30}", base, partial(configured, **{key: value}), (key,))
    for value in (7, [], {}, {"a": 7}, {"a": {"targets": "Linear", "weights": {}}}, {"a": nested(400)}, nested(300)):
        broken = partial(configured, config_groups=value)
        yield Case(f"packed: config_groups {value!r:.40}", "packed", broken, ("config_groups",))
    for value in (7, [1], {"(": {"bits": 4}}, {"a": 7}, {"a": nested(300)}, {"(a+)+": {"bits": 4}}):
        broken = partial(configured, dynamic=value)
        yield Case(f"gptq: dynamic {value!r:.30}", "gptq, ordered", broken, ("dynamic",))
        broken = partial(configured, extra_config=value)
        yield Case(f"auto-round: extra_config {value!r:.30}", "auto-round as awq", broken, ("extra_config",))
    for key, value in (("desc_act", "yes"), ("sym", 1), ("lm_head", "x"), ("modules_in_block_to_quantize", [[7]])):
        yield Case(f"gptq: {key} {value!r}", "gptq, ordered", partial(configured, **{key: value}), (key,))
    for key in ("symmetric", "strategy", "type", "dynamic", "actorder"):
        yield Case(f"packed: {key}", "packed", partial(weighted, **{key: nested(200)}), (key,))


def cut(path: Path, share: float) -> None:
    raw = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(raw[: int(len(raw) * share)])


def emptied(path: Path) -> None:
    (path / "config.json").write_text('{"quantization_config": ' + '{"a": ' * 100_000)


def of_files() -> Iterator[Case]:
    for base in KINDS:
        yield Case(f"{base}: cut short", base, partial(cut, share=0.7), (WEIGHTS, "cut short"))
    yield Case("nested without end", "packed", emptied, ("config.json",))


def cases() -> list[Case]:
    return [*of_tensors(), *of_group_sizes(), *of_configs(), *of_files()]


def test_every_lie_is_refused_in_time_and_by_name(checkpoints, tmp_path):
    everything = cases()
    assert len({case.label for case in everything}) == len(everything) >= VARIANTS_MIN
    wrong = {}
    for number, case in enumerate(everything):
        path = Path(shutil.copytree(checkpoints[case.base], tmp_path / str(number), copy_function=shutil.copyfile))
        case.broken(path)
        began_s = time.thread_time()
        try:
            describe(str(path))
            wrong[case.label] = "was described"
        except RefusalError as refusal:
            if refusal.refusal.code not in ("bad_model", "unsupported"):
                wrong[case.label] = f"refused with {refusal.refusal.code}"
            if missing := [name for name in case.names if name not in str(refusal)]:
                wrong[case.label] = f"does not name {missing}: {refusal}"
            if len(str(refusal)) > 1000:
                wrong[case.label] = "is not said briefly"
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            wrong[case.label] = f"raised {error!r:.300}"
        if (took_s := time.thread_time() - began_s) > REFUSED_WITHIN_S:
            wrong[case.label] = f"took {took_s:.1f} s"
        shutil.rmtree(path)
    assert not wrong, "\n".join(f"{label}: {reason}" for label, reason in wrong.items())
