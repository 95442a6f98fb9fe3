"""What a parent tells each child it starts: sections of the settings and plain values, as one line of JSON on the
command line.

No secret travels there: a join token stays in the environment, where `secrets_env` puts it and `spec_from_json` finds
it.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import attrs
import cattrs

from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings
from hydra.protocol.settings.server import ServerSettings
from hydra.protocol.settings.setting import is_secret
from hydra.protocol.settings.zmq import ZmqSettings
from hydra.settings import Settings

JOIN_TOKEN_ENV = "HYDRA_CLUSTER_JOIN_TOKEN"
HF_TOKEN_ENV = "HF_TOKEN"  # as the Hub's own tools call it; the login of this machine may be there instead


@attrs.frozen(kw_only=True)
class CoordinatorSpec:
    """Addresses to bind, in `zmq`; the model to load, in `model` (path empty: whatever the state directory remembers);
    and where the term is kept.
    """

    zmq: ZmqSettings
    cluster: ClusterSettings
    model: ModelSettings
    engine: EngineSettings
    state_dir: str
    local_nodes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """One device, and the coordinator to join: its addresses are those in `zmq`."""

    node_id: str
    zmq: ZmqSettings
    cluster: ClusterSettings
    model: ModelSettings
    pipeline_bind: str = "tcp://127.0.0.1:0"
    store_bind: str = "tcp://127.0.0.1:0"
    advertise_host: str = ""  # empty: as bound
    device: str = "cpu"
    threads: int = 0  # 0: torch's own choice
    memory_bytes: int = 0  # 0: what the device has
    data_bound: int = 64


@attrs.frozen(kw_only=True)
class FrontendSpec:
    """The listening socket, inherited, and the coordinator to join: its addresses are those in `zmq`."""

    node_id: str
    zmq: ZmqSettings
    cluster: ClusterSettings
    model: ModelSettings  # that this cluster was started for, and the chat template for it alone
    engine: EngineSettings
    server: ServerSettings
    http_fd: int
    http_url: str


ChildSpec: TypeAlias = CoordinatorSpec | WorkerSpec | FrontendSpec
S = TypeVar("S", CoordinatorSpec, WorkerSpec, FrontendSpec)


def spec_to_json(spec: ChildSpec) -> str:
    return json.dumps(attrs.asdict(spec, filter=lambda field, _: not is_secret(field)))


def spec_from_json(text: str, kind: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """Raises when a key is missing, unknown or of another type: a parent and its children are of one version."""
    values: dict[str, Any] = json.loads(text)
    spec = cattrs.Converter(forbid_extra_keys=True).structure(values, kind)
    cluster = attrs.evolve(spec.cluster, join_token=environ.get(JOIN_TOKEN_ENV, ""))
    model = attrs.evolve(spec.model, hf_token=environ.get(HF_TOKEN_ENV, ""))
    return attrs.evolve(spec, cluster=cluster, model=model)


def secrets_env(settings: Settings) -> dict[str, str]:
    """What children must know and no command line or log may show."""
    secrets = {JOIN_TOKEN_ENV: settings.cluster.join_token, HF_TOKEN_ENV: settings.model.hf_token}
    return {name: secret for name, secret in secrets.items() if secret}
