"""What a parent tells each child it starts: plain values, as one line of JSON on the command line.

No secret travels here: a join token stays in the environment, where `secrets_env` puts it.
"""

import json
from typing import Any, Literal, TypeVar

import attrs
import cattrs

from hydra.settings import Settings


@attrs.frozen(kw_only=True)
class CoordinatorSpec:
    """Addresses to bind, the model to load, and where the term is kept."""

    router_addr: str
    broadcast_addr: str
    results_addr: str
    store_addr: str
    state_dir: str
    cache_dir: str
    max_cache_bytes: int
    model_path: str = ""  # empty: whatever the state directory remembers
    model_id: str = ""
    dtype: str = "auto"
    expected_workers: int = 1
    local_nodes: tuple[str, ...] = ()
    patience_s: float = 60.0
    heartbeat_s: float = 0.5
    beats_missed_max: int = 3
    reserve_bytes: int = 2_000_000_000
    kv_fraction: float = 0.9
    max_model_len: int = 0
    block_size: int = 16
    batch_tokens: int = 0
    running_max: int = 256
    waiting_max: int = 1024
    prefix_cache: bool = True
    share_prefixes: Literal["key", "all"] = "all"
    recovery_deadline_s: float = 120.0
    high_water_mark: int = 1000


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """One device, and the coordinator to join."""

    node_id: str
    router_addr: str
    broadcast_addr: str
    cache_dir: str
    max_cache_bytes: int
    pipeline_bind: str = "tcp://127.0.0.1:0"
    store_bind: str = "tcp://127.0.0.1:0"
    advertise_host: str = ""  # empty: as bound
    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 0  # 0: torch's own choice
    memory_bytes: int = 0  # 0: what the device has
    data_bound: int = 64
    high_water_mark: int = 1000


@attrs.frozen(kw_only=True)
class FrontendSpec:
    """The listening socket, inherited, and the coordinator to join."""

    node_id: str
    router_addr: str
    broadcast_addr: str
    http_fd: int
    http_url: str
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 4_194_304
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    while_loading: str = "wait"
    max_replays: int = 5
    high_water_mark: int = 1000
    model_path: str = ""  # of the model that this cluster was started for
    chat_template: str = ""  # a file, for that model alone


S = TypeVar("S", CoordinatorSpec, WorkerSpec, FrontendSpec)


def to_json(spec: CoordinatorSpec | WorkerSpec | FrontendSpec) -> str:
    return json.dumps(attrs.asdict(spec))


def from_json(text: str, kind: type[S]) -> S:
    """Raises when a key is missing, unknown or of another type: a parent and its children are of one version."""
    values: dict[str, Any] = json.loads(text)
    return cattrs.Converter(forbid_extra_keys=True).structure(values, kind)


def secrets_env(settings: Settings) -> dict[str, str]:
    """What children must know and no command line or log may show."""
    found = {"HYDRA_CLUSTER_JOIN_TOKEN": settings.cluster.join_token, "HF_TOKEN": settings.model.hf_token}
    return {name: secret for name, secret in found.items() if secret}
