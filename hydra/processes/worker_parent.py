"""`worker`: a parent with one child, which it starts again. Opens no port, and never imports torch."""

import os
import random
from collections.abc import Callable, Sequence

from hydra.actors.families.parent import ChildCommand, python_child
from hydra.actors.families.supervisor import ChildPlan, Supervisor
from hydra.processes.child_spec import WorkerSpec, secrets_env, spec_to_json
from hydra.processes.huge_pages import huge_pages_env
from hydra.processes.parent_run import ParentRun
from hydra.protocol.ids import NodeId
from hydra.settings import Settings


def worker_argv(spec_json: str) -> Sequence[str]:
    """The command line of the product's own worker."""
    return python_child("_worker", spec_json)


def run_worker_parent(spec: WorkerSpec, settings: Settings, child: Callable[[str], Sequence[str]] = worker_argv) -> int:
    """The whole life of `worker`: the same program with one child, whose command line `child` makes of its spec.

    Returns the exit code.
    """
    env = secrets_env(settings) | huge_pages_env(os.environ)
    run = ParentRun(
        supervisor=Supervisor((ChildPlan(name=NodeId(spec.node_id), role="worker", vital=True),), random.Random()),
        commands={NodeId(spec.node_id): ChildCommand(argv=tuple(child(spec_to_json(spec))), env=env)},
        zmq=spec.zmq,
        name=f"parent-{spec.node_id}",
        join_token=settings.cluster.join_token,
    )
    return run.until_over()
