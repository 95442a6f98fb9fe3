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

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(text: str) -> Any:
    """A field that is written "30s" and read in seconds."""
    return attrs.field(default=seconds(text), metadata={"duration": True})


def seconds(text: str) -> float:
    """ "500ms" -> 0.5. Raises ValueError."""
    parts = _DURATION.fullmatch(text.strip())
    if parts is None:
        raise ValueError(f'{text!r} is no duration; write for example "500ms", "30s" or "2m"')
    return float(parts[1]) * _UNIT_S[parts[2]]


@attrs.frozen(kw_only=True)
class Server:
    http_addr: str = "127.0.0.1:8080"
    metrics_addr: str = "127.0.0.1:9090"
    frontends: int = 1
    drain_timeout: float = _duration("30s")
    max_body_bytes: int = 4_194_304
    allowed_hosts: tuple[str, ...] = ()  # names of this server, beside those that are its own anyway
    allowed_origins: tuple[str, ...] = ()  # of web pages that may operate it
    while_loading: str = "wait"  # what a request to a model that is being loaded does; or it is refused, with a 503


@attrs.frozen(kw_only=True)
class Cluster:
    node_id: str = "coordinator"
    heartbeat_interval: float = _duration("500ms")
    unhealthy_threshold: int = 3
    reserved_vram_gb: float = 2.0
    memory_per_layer_gb: float = 0.5
    policy: str = "vram"
    join_token: str = attrs.field(default="", repr=False, metadata={"secret": True})
    min_nodes: int = 0


@attrs.frozen(kw_only=True)
class Auth:
    enabled: bool = False
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False, metadata={"secret": True})
    rate_limit: int = 100
    rate_window: float = _duration("1m")


@attrs.frozen(kw_only=True)
class Zmq:
    router_addr: str = "tcp://127.0.0.1:5555"
    metrics_addr: str = "tcp://127.0.0.1:5556"
    broadcast_addr: str = "tcp://127.0.0.1:5557"
    results_addr: str = "tcp://127.0.0.1:0"
    store_addr: str = "tcp://127.0.0.1:0"
    high_water_mark: int = 1000


@attrs.frozen(kw_only=True)
class Model:
    path: str = ""
    id: str = ""
    dtype: str = "auto"
    max_model_len: int = 0
    chat_template: str = ""
    cache_dir: str = "~/.cache/hydra/models"
    hf_token: str = attrs.field(default="", repr=False, metadata={"secret": True})
    max_cache_gb: float = 100.0

    def cache_path(self) -> Path:
        """Raises Complaint (exit 2)."""
        try:
            return Path(self.cache_dir).expanduser().absolute()
        except RuntimeError as why:  # ~somebody unknown
            raise Complaint(
                f"[model] cache_dir = {self.cache_dir!r} makes no sense", str(why), "give a path", 2
            ) from why

    def max_cache_bytes(self) -> int:
        return int(self.max_cache_gb * 1e9)


@attrs.frozen(kw_only=True)
class Engine:
    block_size: int = 16
    kv_memory_fraction: float = 0.9
    max_batch_tokens: int = 0
    max_running: int = 256
    max_waiting: int = 1024
    prefix_cache: bool = True
    share_prefixes: str = "all"
    recovery_deadline: float = _duration("120s")
    max_replays: int = 5


@attrs.frozen(kw_only=True)
class Settings:
    server: Server = attrs.field(factory=Server)
    cluster: Cluster = attrs.field(factory=Cluster)
    auth: Auth = attrs.field(factory=Auth)
    zmq: Zmq = attrs.field(factory=Zmq)
    model: Model = attrs.field(factory=Model)
    engine: Engine = attrs.field(factory=Engine)


SECTIONS: dict[str, type] = {
    "server": Server,
    "cluster": Cluster,
    "auth": Auth,
    "zmq": Zmq,
    "model": Model,
    "engine": Engine,
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
            shown = f"[{section}] {key}" if is_secret(section, key) else f"[{section}] {key} = {given!r}"
            cause = "this version does not have it, and does not pretend to"
            fix = "leave it out" if (section, key) in NOT_EVEN_BY_DEFAULT else f"set it to {kept!r}, or leave it out"
            raise Complaint(f"{shown} is not possible yet", cause, fix, 2)
    _check_ranges(settings)
    _check_join_token(settings.cluster.join_token)
    return settings


def is_secret(section: str, key: str) -> bool:
    """Whether its value is shown to nobody, not even in a complaint about it."""
    return bool(attrs.fields_dict(SECTIONS[section])[key].metadata.get("secret"))


def _check_join_token(token: str) -> None:
    if token and len(token) < TOKEN_LENGTH_MIN:
        raise Complaint(
            f"[cluster] join_token has {len(token)} characters",
            f"under {TOKEN_LENGTH_MIN} it can be guessed by whoever reaches a port",
            'make one: python3 -c "import secrets; print(secrets.token_urlsafe(24))"',
            2,
        )


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
    except (OSError, ValueError) as why:
        raise Complaint(f"{path} cannot be read", str(why), "mend the file, or name another with --config", 2) from why
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
        if field.metadata.get("duration"):
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
            shown = "another type" if field.metadata.get("secret") else repr(value)
            raise ValueError(f"expected {wanted.__name__}, got {shown}")
    except (ValueError, TypeError) as why:
        raise Complaint(f"[{section}] {field.name} makes no sense", str(why), f"default: {field.default!r}", 2) from why
    return value


def _from_text(text: str, wanted: type) -> Any:
    if wanted is bool:
        known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in known:
            raise ValueError(f"{text!r} is neither true nor false")
        return known[text.lower()]
    return wanted(text)
