"""Loads as whoever asked for them may follow them: one job each, remembered for a while after its end.

Promises: a job's name is never given twice within a term, and a finished job keeps its last word. Refuses to know how
a load goes on; the Planner says so.
"""

from typing import Literal

import attrs

from hydra.actors.planning.placement import Route, StagePlacement
from hydra.protocol.messages.models import JobStatus, NodeLoad
from hydra.protocol.refusal import Refusal, refuse

JOBS_MAX = 64  # remembered; the oldest finished one is forgotten first


@attrs.define(eq=False)
class Jobs:
    """The jobs of one life of a coordinator, oldest first."""

    _jobs: dict[str, JobStatus] = attrs.field(factory=dict, init=False)
    _begun: int = attrs.field(default=0, init=False)

    def begin(self, term: int, model_id: str, model_path: str) -> str:
        """The name of a new job."""
        self._begun += 1
        job = f"load-{term}-{self._begun}"
        self._jobs[job] = JobStatus(job=job, model_id=model_id, model_path=model_path, state="loading", nodes=())
        finished = [name for name, entry in self._jobs.items() if entry.state != "loading"]
        for name in finished[: max(0, len(self._jobs) - JOBS_MAX)]:
            del self._jobs[name]
        return job

    def end(self, job: str, refusal: Refusal | None, route: Route | None) -> None:
        """It is ready, or was refused. Only the first end counts."""
        entry = self._jobs.get(job)
        if entry is None or entry.state != "loading":
            return
        state: Literal["ready", "failed", "cancelled"] = "ready"
        if refusal is not None:
            state = "cancelled" if refusal.code == "cancelled" else "failed"
        self._jobs[job] = attrs.evolve(entry, state=state, nodes=node_loads(route), refusal=refusal)

    def check(self) -> None:
        """Each job under its own name, with a reason if it went wrong and none if not. Raises AssertionError."""
        assert len(self._jobs) <= self._begun, "more jobs than were begun"
        for name, status in self._jobs.items():
            assert status.job == name, f"{status.job} is kept under {name}"
            wrong = status.state in ("failed", "cancelled")
            assert (status.refusal is not None) == wrong, f"{name} is {status.state}, because of {status.refusal}"

    def entries(self, job: str | None) -> tuple[JobStatus, ...]:
        """One job, or all of them. Raises RefusalError job_not_found."""
        if job is None:
            return tuple(self._jobs.values())
        if job not in self._jobs:
            raise refuse("job_not_found", f"There is no load job {job[:80]!r}; finished ones are forgotten in time.")
        return (self._jobs[job],)


def node_loads(route: Route | None) -> tuple[NodeLoad, ...]:
    """How far every node of a route has come."""
    return tuple(_node_load(placement) for placement in route.stages) if route is not None else ()


def _node_load(placement: StagePlacement) -> NodeLoad:
    return NodeLoad(
        node_id=placement.share.node,
        state="loaded" if placement.loaded is not None else placement.phase,
        bytes_done=placement.bytes_done,
        bytes_total=placement.bytes_total,
    )
