"""Every setting, read once: flags over HYDRA_* environment over ./config.toml (or --config) over defaults.

Unknown keys are errors with a suggestion, types are exact, numbers are in range, durations carry a unit. A setting that
this version cannot honour is refused by name; none is ignored, and none is taken for another value than was given.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from hydra.complaint import Complaint
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings
from hydra.protocol.settings.server import ServerSettings
from hydra.protocol.settings.setting import duration, is_duration, is_secret, seconds, secret
from hydra.protocol.settings.zmq import ZmqSettings

TOKEN_LENGTH_MIN = 16  # of a join token: what a person makes up beside that is guessed in a night
PLAIN_VARIABLES = (
    "HYDRA_LOG",
    "HYDRA_URL",
    "HYDRA_SEEDS",
    "HYDRA_FAMILY",
    "HYDRA_CHAOS_S",
    "HYDRA_CHAOS_SEED",
)  # read elsewhere: hydra/log/set_up.py, the commands, the tests
TEST_VARIABLES = "HYDRA_TEST_"


@attrs.frozen(kw_only=True)
class AuthSettings:
    """Section [auth], of which this version keeps nothing yet."""

    enabled: bool = False
    api_keys: tuple[str, ...] = secret(())
    rate_limit: int = 100
    rate_window: float = duration("1m")


@attrs.frozen(kw_only=True)
class Settings:
    server: ServerSettings = attrs.field(factory=ServerSettings)
    cluster: ClusterSettings = attrs.field(factory=ClusterSettings)
    auth: AuthSettings = attrs.field(factory=AuthSettings)
    zmq: ZmqSettings = attrs.field(factory=ZmqSettings)
    model: ModelSettings = attrs.field(factory=ModelSettings)
    engine: EngineSettings = attrs.field(factory=EngineSettings)


SECTIONS: dict[str, type] = {
    "server": ServerSettings,
    "cluster": ClusterSettings,
    "auth": AuthSettings,
    "zmq": ZmqSettings,
    "model": ModelSettings,
    "engine": EngineSettings,
}

# What makes sense of a number, both ends included. What a model or a device can do is found out where it is known.
RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("server", "drain_timeout"): (0, 86_400),
    ("server", "max_body_bytes"): (1, 1 << 40),
    ("cluster", "heartbeat_interval"): (0.01, 3600),
    ("cluster", "unhealthy_threshold"): (1, 1000),
    ("cluster", "reserved_vram_gb"): (0, 1e6),
    ("cluster", "min_nodes"): (0, 10_000),
    ("zmq", "high_water_mark"): (1, 1 << 30),  # 0 would mean without bound
    ("model", "max_model_len"): (0, 1 << 30),
    ("model", "replicas"): (1, 64),
    ("model", "max_cache_gb"): (0, 1e9),
    ("engine", "block_size"): (1, 4096),
    ("engine", "kv_memory_fraction"): (0.01, 1),
    ("engine", "max_batch_tokens"): (0, 1 << 19),  # a step's header has room for twice that
    ("engine", "max_running"): (1, 4096),  # as many rows as a step may have
    ("engine", "max_waiting"): (1, 1 << 20),  # 0 would refuse every request
    ("engine", "recovery_deadline"): (0.1, 86_400),
    ("engine", "max_replays"): (0, 1000),
}
CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("model", "dtype"): ("auto", "float32", "bfloat16", "float16"),
    ("model", "quantize"): ("none", "int8", "int4"),
    ("model", "built_in"): ("auto", "hub", "random"),
    ("engine", "share_prefixes"): ("all", "key"),  # key: cached_tokens tells nobody what another key has sent
    ("server", "while_loading"): ("wait", "refuse"),
}

# What each entry of a list must look like, and in words.
ENTRIES: dict[tuple[str, str], tuple[str, str]] = {
    ("server", "allowed_hosts"): (r"\*|\.?[A-Za-z0-9_.-]+", 'names without scheme and port, such as "llm.example.com"'),
    ("server", "allowed_origins"): (
        r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/\s,]+",
        'a scheme and a host, such as "https://chat.example.com"',
    ),
}

# Written in the design, honoured by a later version: (section, key, the only value this version can keep).
NOT_YET: tuple[tuple[str, str, Any], ...] = (
    ("auth", "enabled", False),
    ("auth", "api_keys", ()),  # nobody is asked for one
    ("auth", "rate_limit", 100),
    ("auth", "rate_window", 60.0),
    ("server", "frontends", 1),
    ("cluster", "node_id", "coordinator"),
    ("cluster", "policy", "vram"),
    ("cluster", "memory_per_layer_gb", 0.5),  # for models without headers, of which this version loads none
    ("server", "metrics_addr", "127.0.0.1:9090"),  # /metrics of the API has the same text
    ("zmq", "metrics_addr", "tcp://127.0.0.1:5556"),  # counters ride on heartbeats
)
# Of these not even the default is kept: whoever sets one, to whatever value, believes in a guard that is not there.
NOT_EVEN_BY_DEFAULT = (("auth", "rate_limit"), ("auth", "rate_window"))


def load_settings(
    config: Path | None, flags: Mapping[tuple[str, str], Any], environ: Mapping[str, str] = os.environ
) -> Settings:
    """Raises Complaint (exit 2) naming the key and what would be right."""
    path = config or Path("config.toml")
    values: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if config is not None or path.exists():
        _merge_file(path, values)
    _merge_environment(environ, values)
    for (section, key), value in flags.items():
        if value is not None:
            values[section][key] = value
    settings = Settings(**{name: _section(name, kind, values[name]) for name, kind in SECTIONS.items()})
    for section, key, kept in NOT_YET:
        given = getattr(getattr(settings, section), key)
        trusted = (section, key) in NOT_EVEN_BY_DEFAULT and key in values[section]
        if given != kept or trusted:
            shown = (
                f"[{section}] {key}"
                if is_secret(attrs.fields_dict(SECTIONS[section])[key])
                else f"[{section}] {key} = {given!r}"
            )
            cause = "this version does not have it, and does not pretend to"
            fix = "leave it out" if (section, key) in NOT_EVEN_BY_DEFAULT else f"set it to {kept!r}, or leave it out"
            raise Complaint(f"{shown} is not possible yet", cause, fix, 2)
    _check_ranges(settings)
    _check_join_token(settings.cluster.join_token)
    return settings


def _check_join_token(token: str) -> None:
    if token and len(token) < TOKEN_LENGTH_MIN:
        raise Complaint(
            f"[cluster] join_token has {len(token)} characters",
            f"under {TOKEN_LENGTH_MIN} it can be guessed by whoever reaches a port",
            'make one: python3 -c "import secrets; print(secrets.token_urlsafe(24))"',
            2,
        )


def expanded(key: str, text: str) -> Path:
    """A path of section [model]. Raises Complaint (exit 2)."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody unknown
        raise Complaint(f"[model] {key} = {text!r} makes no sense", str(error), "give a path", 2) from error


def cache_path(model: ModelSettings) -> Path:
    """Raises Complaint (exit 2)."""
    return expanded("cache_dir", model.cache_dir).absolute()


def with_paths(settings: Settings) -> Settings:
    """With absolute paths in [model], so that they mean the same to every process. Raises Complaint (exit 2)."""
    template = settings.model.chat_template
    model = attrs.evolve(
        settings.model,
        cache_dir=str(cache_path(settings.model)),
        chat_template=template and str(expanded("chat_template", template).absolute()),
    )
    return attrs.evolve(settings, model=model)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each HYDRA_* variable that nothing reads. Those of a known section are refused by `load_settings`."""
    known = [f"HYDRA_{section}_{key}".upper() for section, kind in SECTIONS.items() for key in attrs.fields_dict(kind)]
    known += PLAIN_VARIABLES
    lines: list[str] = []
    for name in sorted(environ):
        if not name.startswith("HYDRA_") or name.startswith(TEST_VARIABLES) or name in PLAIN_VARIABLES:
            continue
        if name.removeprefix("HYDRA_").lower().partition("_")[0] in SECTIONS:
            continue
        near = _nearest(name, known)
        lines.append(f"nothing reads {name}" + (f"; did you mean {near}?" if near else ""))
    return lines


def _nearest(name: str, known: list[str]) -> str | None:
    """The variable that was probably meant: one that ends alike (HYDRA_JOIN_TOKEN), or one that reads alike."""
    tail = name.removeprefix("HYDRA")
    alike = [one for one in known if one.endswith(tail)] or difflib.get_close_matches(name, known, 1, 0.75)
    return alike[0] if alike else None


def _check_ranges(settings: Settings) -> None:
    for (section, key), (least, most) in RANGES.items():
        value = getattr(getattr(settings, section), key)
        if not least <= value <= most:
            raise _out_of(section, key, value, f"it must be from {least:g} to {most:g}")
    for (section, key), known in CHOICES.items():
        value = getattr(getattr(settings, section), key)
        if value not in known:
            raise _out_of(section, key, value, f"choose from {', '.join(known)}")
    for (section, key), (form, known_as) in ENTRIES.items():
        value = getattr(getattr(settings, section), key)
        if not all(re.fullmatch(form, entry) for entry in value):
            raise _out_of(section, key, value, f"its entries are {known_as}")


def _out_of(section: str, key: str, value: object, known: str) -> Complaint:
    default = attrs.fields_dict(SECTIONS[section])[key].default
    return Complaint(f"[{section}] {key} = {value!r} makes no sense", known, f"default: {default!r}", 2)


def _merge_file(path: Path, values: dict[str, dict[str, Any]]) -> None:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Complaint(
            f"{path} cannot be read", str(error), "mend the file, or name another with --config", 2
        ) from error
    for section, keys in content.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise _unknown(f"section [{section}] in {path}", section, SECTIONS)
        values[section].update(keys)


def _merge_environment(environ: Mapping[str, str], values: dict[str, dict[str, Any]]) -> None:
    for name, text in environ.items():
        section, _, key = name.removeprefix("HYDRA_").lower().partition("_")
        if name.startswith("HYDRA_") and section in SECTIONS:
            values[section][key] = text


def _section(name: str, kind: type, given: Mapping[str, Any]) -> Any:
    fields = attrs.fields_dict(kind)
    for key in given:
        if key not in fields:
            raise _unknown(f"key {key!r} in [{name}]", key, fields)
    return kind(**{key: _value(name, fields[key], value) for key, value in given.items()})


def _unknown(what: str, word: str, known: Mapping[str, Any]) -> Complaint:
    near = difflib.get_close_matches(word, list(known), 1)
    return Complaint(f"unknown {what}", "nothing reads it", f"did you mean {near[0]!r}?" if near else "remove it", 2)


def _value(section: str, field: "attrs.Attribute[Any]", value: Any) -> Any:
    """The value in the field's own type; text from the environment is read as that type."""
    wanted = type(field.default)
    try:
        if is_duration(field):
            if isinstance(value, bool):
                raise ValueError(f'{value!r} is no duration; write for example "500ms", "30s" or "2m"')
            return seconds(value) if isinstance(value, str) else float(value)
        if wanted is tuple:
            items = value.split(",") if isinstance(value, str) else value
            return tuple(str(item) for item in items if item)
        if isinstance(value, str) and wanted is not str:
            return _from_text(value, wanted)
        if wanted is float and type(value) is int:
            return float(value)
        if type(value) is not wanted:
            shown = "another type" if is_secret(field) else repr(value)
            raise ValueError(f"expected {wanted.__name__}, got {shown}")
    except (ValueError, TypeError) as error:
        raise Complaint(
            f"[{section}] {field.name} makes no sense", str(error), f"default: {field.default!r}", 2
        ) from error
    return value


def _from_text(text: str, wanted: type) -> Any:
    if wanted is bool:
        known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in known:
            raise ValueError(f"{text!r} is neither true nor false")
        return known[text.lower()]
    return wanted(text)
