"""A worker that dies of one token: like `python -m hydra worker`, but its device is a `PoisonedRunner`.

    python -m scenarios.poisoned_worker worker --node-id h0 --coordinator tcp://127.0.0.1:5555 ... \
        --poison 260 --diary FILE

Everything else is the product's own: the parent that starts it again, the stage, its thread, its sockets.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import click

from hydra.actors.families.parent import python_child
from hydra.log.set_up import set_up_logging
from hydra.processes.child_spec import WorkerSpec, spec_from_json
from hydra.processes.worker import worker_main
from hydra.processes.worker_parent import run_worker_parent
from hydra.settings import load_settings, with_paths

MODULE = "scenarios.poisoned_worker"


@click.group()
def cli() -> None:
    """A worker that dies of one token."""


def _poisoned(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--poison", type=int, required=True)(command)
    return click.option("--diary", type=click.Path(path_type=Path), required=True)(command)


@cli.command()
@click.option("--node-id", required=True)
@click.option("--coordinator", required=True)
@click.option("--broadcast", required=True)
@click.option("--pipeline-port", type=int, required=True)
@click.option("--device", required=True)
@click.option("--threads", type=int, required=True)
@click.option("--memory-gb", type=float, required=True)
@_poisoned
def worker(
    node_id: str,
    coordinator: str,
    broadcast: str,
    pipeline_port: int,
    device: str,
    threads: int,
    memory_gb: float,
    poison: int,
    diary: Path,
) -> None:
    """The parent: the product's own, with a child of ours."""
    set_up_logging("parent", node_id)
    settings = with_paths(load_settings(None, {}))
    spec = WorkerSpec(
        node_id=node_id,
        zmq=attrs.evolve(settings.zmq, router_addr=coordinator, broadcast_addr=broadcast),
        cluster=settings.cluster,
        model=settings.model,
        pipeline_bind=f"tcp://127.0.0.1:{pipeline_port}",
        device=device,
        threads=threads,
        memory_bytes=int(memory_gb * 1e9),
    )
    more = ("--poison", str(poison), "--diary", str(diary))
    sys.exit(
        run_worker_parent(spec, settings, lambda spec_json: python_child("child", spec_json, *more, module=MODULE))
    )


@cli.command()
@click.option("--lifeline", required=True)
@click.option("--spec", "spec_json", required=True)
@_poisoned
def child(lifeline: str, spec_json: str, poison: int, diary: Path) -> None:
    """The worker child, with a device that is not what it should be."""
    from scenarios.poisoned_runner import PoisonedRunner  # imports torch, which a parent never does

    spec = spec_from_json(spec_json, WorkerSpec)
    set_up_logging("worker", spec.node_id)
    read_fd, _, write_fd = lifeline.partition(",")
    worker_main(spec, (int(read_fd), int(write_fd)), lambda spec: PoisonedRunner(spec, poison, diary))


if __name__ == "__main__":
    cli()
