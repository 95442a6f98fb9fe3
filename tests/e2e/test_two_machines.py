"""Two machines with a network between them that lets through what it likes: what cannot be reached is never counted on.

Each test leaves the cluster whole for the next: the far worker ready, and nothing dropped.
"""

import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hydra.processes.held_port import HeldPort
from hydra.protocol.loopback import LOOPBACK
from scenarios.processes import Ports, Processes, processes
from tests.e2e.clients import Clients
from tests.e2e.cluster import RunningCluster
from tests.e2e.served import Served, complete
from tests.e2e.two_machines import ADDRESSES, NoNamespaces, TwoMachines, two_machines

ROUTER, BROADCAST, RESULTS, STORE, PIPELINE, LENDING = 5555, 5557, 5558, 5559, 6000, 6001
MODEL = Path("/proc/self/cwd/model")  # another place on each machine: the far one has no copy
JOIN_TOKEN = "a-token-of-two-machines"
PAUSE_MAX_S = 25.0
BACK_WITHIN_S = 15.0
FOUND_OUT_WITHIN_S = 30.0  # a step's lease is a multiple of what steps took before, and this machine is busy
PLAN_AGAIN_S = 3.0
START_WITHIN_S = 60.0
FAR = ADDRESSES["b"]


@contextmanager
def made_machines() -> Iterator[TwoMachines]:
    try:
        with two_machines() as made:
            yield made
    except NoNamespaces as why:
        pytest.skip(f"no network namespaces can be made here: {why}")


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with made_machines() as made:
        yield made


@contextmanager
def cluster_on_a(machines: TwoMachines, model: Served, scratch: Path, workers: int) -> Iterator[RunningCluster]:
    """`up --lan` on the first machine, which has the model; workers called "far..." start on the second."""
    shutil.copytree(model.directory, scratch / "model")
    router, broadcast, results = (HeldPort(host=LOOPBACK, port=port) for port in (ROUTER, BROADCAST, RESULTS))
    ports = Ports(router=router, broadcast=broadcast, results=results)
    within = {"up": machines.inside("a")} | {name: machines.inside("b") for name in ("far", "far-lost")}
    with processes(scratch, ports, within) as running:
        store = {"HYDRA_ZMQ_STORE_ADDR": f"tcp://{LOOPBACK}:{STORE}", "HYDRA_CLUSTER_JOIN_TOKEN": JOIN_TOKEN}
        up = running.start_up(MODEL, workers, "--lan", min_nodes=workers, **store)
        try:
            assert up.stdout is not None
            line = up.stdout.readline()
            assert line.startswith("ready http://"), f"up said {line!r}"
            with machines.bridge("a", int(line.rpartition(":")[2])) as port:
                cluster = RunningCluster(running, f"http://{LOOPBACK}:{port}")
                cluster.family()
                yield cluster
                cluster.client.close()
        finally:
            print(running.messages()[-20_000:])


def start_far(processes: Processes, name: str, *more: str) -> None:
    """A worker on the second machine, with a disk of its own."""
    disk = processes.scratch / name
    disk.mkdir()
    coordinator = f"tcp://{ADDRESSES['a']}:{ROUTER}"
    ports = ["--pipeline-port", str(PIPELINE), "--store-port", str(LENDING)]
    env = {"HYDRA_CLUSTER_JOIN_TOKEN": JOIN_TOKEN, "HYDRA_MODEL_CACHE_DIR": str(disk / "cache")}
    processes.start_worker(name, "--coordinator", coordinator, *ports, *more, cwd=disk, env=env)


@pytest.fixture(scope="module")
def cluster(
    machines: TwoMachines, untied: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningCluster]:
    """One worker on the first machine."""
    with cluster_on_a(machines, untied, tmp_path_factory.mktemp("two"), 1) as running:
        yield running


@pytest.fixture(scope="module")
def far(cluster: RunningCluster) -> str:
    """And one on the second, of which nothing is said but where the coordinator is."""
    start_far(cluster.processes, "far")
    cluster.wait_until("the far worker has joined", START_WITHIN_S, lambda: node(cluster, "far") is not None)
    return "far"


def node(cluster: RunningCluster, name: str) -> dict[str, Any] | None:
    return next((one for one in cluster.status()["nodes"] if one["node_id"] == name), None)


def is_unreachable(cluster: RunningCluster, address: str) -> bool:
    """The status says so, and of which address."""
    far = node(cluster, "far")
    return far is not None and far["state"] == "unreachable" and address in far["why"]


def is_ready(cluster: RunningCluster) -> bool:
    far = node(cluster, "far")
    return far is not None and far["state"] == "ready"


def use_far(cluster: RunningCluster) -> None:
    """Once it is ready it takes part in the next plan."""
    cluster.wait_until("the far worker is ready", BACK_WITHIN_S, lambda: is_ready(cluster))
    cluster.rebalance()
    cluster.wait_until(
        "the far worker serves", 20, lambda: "far" in cluster.layers() and cluster.status()["ready"] is True
    )


@contextmanager
def streams(cluster: RunningCluster, asked: Served) -> Iterator[Clients]:
    """Two that run without pause; at the end every answer was right, and none stood still for too long."""
    clients = Clients(cluster.client, cluster.model_id(), asked, deadline_s=2 * PAUSE_MAX_S)
    with clients.asking(streaming=2):
        cluster.wait_until("answers", 30, lambda: len(clients.done()) >= 2)
        yield clients
    assert not clients.faults()
    assert clients.longest_pause_s() < PAUSE_MAX_S


def answered_since(clients: Clients, since_s: float) -> bool:
    return any(answer.asked_s > since_s for answer in clients.done())


def go_on_without(cluster: RunningCluster, clients: Clients, address: str, *, rebalancing: bool) -> None:
    """Whoever cannot be reached is named and left out, and whoever asks meanwhile is answered.

    `rebalancing`: it is found out by plans, of which one that comes soon after another need not try everything again.
    """
    began_s = time.monotonic()
    asked_s = -PLAN_AGAIN_S

    def found_out() -> bool:
        nonlocal asked_s
        if rebalancing and time.monotonic() - asked_s >= PLAN_AGAIN_S:
            asked_s = time.monotonic()
            cluster.rebalance()
        return is_unreachable(cluster, address)

    cluster.wait_until(f"far is unreachable at {address}", FOUND_OUT_WITHIN_S, found_out)
    cluster.wait_until("an answer meanwhile", PAUSE_MAX_S, lambda: answered_since(clients, began_s))
    cluster.wait_until("a route without it", 10, lambda: cluster.status()["ready"] and "far" not in cluster.layers())
    cluster.rebalance()  # and it stays so
    again_s = time.monotonic()
    cluster.wait_until("an answer after that", PAUSE_MAX_S, lambda: answered_since(clients, again_s))
    assert "far" not in cluster.layers()


def test_a_worker_elsewhere_that_says_it_is_at_loopback_is_turned_away(cluster: RunningCluster, untied: Served) -> None:
    start_far(cluster.processes, "far-lost", "--bind", LOOPBACK, "--advertise", LOOPBACK)
    try:
        assert cluster.processes.started["far-lost"].wait(10) not in (0, 1)
    finally:
        cluster.processes.kill("far-lost")
    assert "--advertise" in cluster.processes.messages()
    assert node(cluster, "far-lost") is None
    assert complete(cluster, untied.prompts[1], stream=True) == untied.answers[1]


def test_a_worker_elsewhere_follows_the_route_to_the_coordinator(
    cluster: RunningCluster, far: str, untied: Served
) -> None:
    there = node(cluster, far)
    assert there is not None and there["pipeline_addr"] == f"tcp://{FAR}:{PIPELINE}"
    use_far(cluster)
    assert [complete(cluster, prompt, stream=True) for prompt in untied.prompts[:3]] == untied.answers[:3]


def test_a_worker_that_the_hop_before_cannot_reach_is_left_out_until_it_can(
    cluster: RunningCluster, far: str, machines: TwoMachines, untied: Served
) -> None:
    with streams(cluster, untied) as clients:
        with machines.dropping("b", PIPELINE):
            go_on_without(cluster, clients, f"tcp://{FAR}:{PIPELINE}", rebalancing=True)
        use_far(cluster)


@pytest.mark.long
@pytest.mark.parametrize("port", [RESULTS, pytest.param(STORE, marks=pytest.mark.long)])
def test_a_worker_that_cannot_reach_the_coordinators_lanes_is_left_out_until_it_can(
    port: int, cluster: RunningCluster, far: str, machines: TwoMachines, untied: Served
) -> None:
    with streams(cluster, untied) as clients:
        with machines.dropping("a", port):
            go_on_without(cluster, clients, f":{port}", rebalancing=True)
        use_far(cluster)


@pytest.mark.long
@pytest.mark.parametrize(("machine", "port"), [("b", PIPELINE), ("a", RESULTS)])
def test_steps_that_vanish_on_the_way_end_the_route_and_not_the_stream(
    machine: str, port: int, untied: Served, tmp_path: Path
) -> None:
    """To and from the last stage, which is the far one: nothing has broken before that could change the order."""
    with made_machines() as machines, cluster_on_a(machines, untied, tmp_path, 1) as cluster:
        start_far(cluster.processes, "far")
        cluster.wait_until("the far worker has joined", START_WITHIN_S, lambda: node(cluster, "far") is not None)
        use_far(cluster)
        assert in_order(cluster) == ["w0", "far"]
        with streams(cluster, untied) as clients:
            with machines.dropping(machine, port):
                go_on_without(cluster, clients, f":{port}", rebalancing=False)
            use_far(cluster)


@pytest.mark.long
def test_a_hop_between_two_workers_that_leads_nowhere_is_in_no_plan(untied: Served, tmp_path: Path) -> None:
    """The far worker reaches all but the worker of the first machine that comes after it."""
    with made_machines() as machines, cluster_on_a(machines, untied, tmp_path, 2) as cluster:
        start_far(cluster.processes, "far")
        cluster.wait_until("the far worker has joined", START_WITHIN_S, lambda: node(cluster, "far") is not None)
        after = stage_after_far(cluster)
        there = node(cluster, after)
        assert there is not None
        with streams(cluster, untied) as clients:
            with machines.dropping("a", int(there["pipeline_addr"].rpartition(":")[2])):
                cluster.rebalance()
                cut_s = time.monotonic()
                cluster.wait_until("an answer", PAUSE_MAX_S, lambda: answered_since(clients, cut_s))
                cluster.wait_until("a route", 10, lambda: cluster.status()["ready"])
                assert ("far", after) not in itertools.pairwise(in_order(cluster))
            use_far(cluster)


def stage_after_far(cluster: RunningCluster) -> str:
    """Workers that join again come last: once both have died together, the far one is the first."""
    use_far(cluster)
    before = {name: cluster.pid_of_node(name) for name in ("w0", "w1")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    for name, pid in before.items():
        cluster.wait_until(f"{name} is back", START_WITHIN_S, lambda of=(name, pid): is_back(cluster, *of))
    cluster.rebalance()
    cluster.wait_until("both serve again", START_WITHIN_S, lambda: len(cluster.layers()) == 3)
    order = in_order(cluster)
    assert order[-1] != "far", order
    return order[order.index("far") + 1]


def is_back(cluster: RunningCluster, name: str, before: int) -> bool:
    return pid_of(cluster, name) not in (None, before)


def pid_of(cluster: RunningCluster, name: str) -> int | None:
    there = node(cluster, name)
    return None if there is None else int(there["pid"])


def in_order(cluster: RunningCluster) -> list[str]:
    """The stages of the route."""
    layers = cluster.layers()
    return sorted(layers, key=layers.__getitem__)
