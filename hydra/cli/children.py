"""The commands that only a parent types: its children. Hidden from people."""

from collections.abc import Callable
from typing import Any

import click

from hydra.log.set_up import set_up_logging
from hydra.processes.child_spec import CoordinatorSpec, FrontendSpec, WorkerSpec, spec_from_json


def _child(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--spec", required=True)(command)
    return click.option("--lifeline", required=True)(command)


def _fds(lifeline: str) -> tuple[int, int]:
    read_fd, _, write_fd = lifeline.partition(",")
    return int(read_fd), int(write_fd)


@click.command("_coordinator", hidden=True)
@_child
def coordinator_child(spec: str, lifeline: str) -> None:
    set_up_logging("coordinator")
    from hydra.processes.coordinator import coordinator_main

    coordinator_main(spec_from_json(spec, CoordinatorSpec), _fds(lifeline))


@click.command("_worker", hidden=True)
@_child
def worker_child(spec: str, lifeline: str) -> None:
    worker_spec = spec_from_json(spec, WorkerSpec)
    set_up_logging("worker", worker_spec.node_id)
    from hydra.processes.worker import worker_main

    worker_main(worker_spec, _fds(lifeline))


@click.command("_frontend", hidden=True)
@click.option("--been-ready", type=click.BOOL, default=False)
@_child
def frontend_child(spec: str, lifeline: str, been_ready: bool) -> None:
    frontend_spec = spec_from_json(spec, FrontendSpec)
    set_up_logging("frontend", frontend_spec.node_id)
    from hydra.processes.frontend import frontend_main

    frontend_main(frontend_spec, _fds(lifeline), been_ready=been_ready)
