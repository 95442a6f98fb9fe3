"""Section [server]: the HTTP API."""

from typing import Literal, TypeAlias

import attrs

from hydra.protocol.settings.setting import duration

WhileLoading: TypeAlias = Literal["wait", "refuse"]  # what a request to a model that is being loaded does; with a 503


@attrs.frozen(kw_only=True)
class ServerSettings:
    http_addr: str = "127.0.0.1:8080"
    metrics_addr: str = "127.0.0.1:9090"
    frontends: int = 1
    drain_timeout: float = duration("30s")
    max_body_bytes: int = 4_194_304
    allowed_hosts: tuple[str, ...] = ()  # names of this server, beside those that are its own anyway
    allowed_origins: tuple[str, ...] = ()  # of web pages that may operate it
    while_loading: WhileLoading = "wait"
