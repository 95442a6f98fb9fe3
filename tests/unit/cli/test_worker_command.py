"""Where a worker listens: where the others can reach it, or it is refused at once with the remedy."""

import socket

import pytest
from click.testing import CliRunner

from hydra.cli import worker as command
from hydra.cli.main import cli
from hydra.complaint import Complaint
from hydra.processes.host_port import HostPort

PARENT = "hydra.processes.worker_parent.run_worker_parent"
OWN = "10.0.0.7"
ELSEWHERE = HostPort("10.0.0.5", 5555)
HERE = HostPort("127.0.0.1", 5555)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """A machine with one address of its own."""
    monkeypatch.setattr(
        command, "resolve", lambda name, host: {"den": "10.0.0.5", "localhost": "127.0.0.1"}.get(host, host)
    )
    monkeypatch.setattr(command, "local_address_towards", lambda name, host_ip, port: OWN)


@pytest.mark.parametrize(
    ("coordinator", "bind", "advertise", "place"),
    [
        (ELSEWHERE, None, "", (OWN, OWN)),
        (HostPort("den", 5555), None, "", (OWN, OWN)),
        (ELSEWHERE, "0.0.0.0", "", ("0.0.0.0", OWN)),
        (ELSEWHERE, "*", "host.example", ("*", "host.example")),
        (ELSEWHERE, "127.0.0.1", "gate.example", ("127.0.0.1", "gate.example")),  # something forwards to it
        (HERE, None, "", ("127.0.0.1", "127.0.0.1")),
        (HostPort("localhost", 5555), None, "", ("127.0.0.1", "127.0.0.1")),
        (HERE, "0.0.0.0", "", ("0.0.0.0", "127.0.0.1")),
        (HERE, None, "127.0.0.2", ("127.0.0.1", "127.0.0.2")),
    ],
)
def test_it_follows_the_way_to_the_coordinator(coordinator, bind, advertise, place):
    found = command.find_place(coordinator, bind, advertise)
    assert (found.bind, found.advertise) == place


@pytest.mark.parametrize(
    ("bind", "advertise", "option"),
    [
        ("127.0.0.1", "", "--bind"),
        ("localhost", "", "--bind"),
        (None, "127.0.0.1", "--advertise"),
        ("*", "localhost", "--advertise"),
    ],
)
def test_a_promise_that_nobody_elsewhere_could_use_is_refused(bind, advertise, option):
    with pytest.raises(Complaint) as caught:
        command.find_place(ELSEWHERE, bind, advertise)
    assert caught.value.exit_code == 2 and f"{option} {OWN}" in caught.value.fix


def test_ports_are_known_off_loopback():
    assert command.ends(OWN, None, None, None) == (HostPort(OWN, 6000), HostPort(OWN, 6001))
    assert command.ends("127.0.0.1", None, None, None) == (HostPort("127.0.0.1", 6000), HostPort("127.0.0.1", 0))
    assert command.ends(OWN, None, 0, 7000) == (HostPort(OWN, 0), HostPort(OWN, 7000))
    assert command.ends(OWN, "6100-6101", None, None) == (HostPort(OWN, 6100), HostPort(OWN, 6101))
    for words in (("6100", 1, None), ("6100-6100", None, None), (None, 7, 7), (None, None, 6000)):
        with pytest.raises(Complaint) as caught:
            command.ends(OWN, *words)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["--coordinator", "tcp://10.0.0.5:5555"], 6),
        (["--coordinator", "tcp://10.0.0.5:5555", "--bind", "127.0.0.1"], 2),
        (["--coordinator", "tcp://10.0.0.5:5555", "--bind", "127.0.0.1", "--advertise", "gate"], 6),
        (["--coordinator", "udp://10.0.0.5:5555"], 2),
        (["--coordinator", "tcp://10.0.0.5:5555", "--broadcast", "ipc:///tmp/x"], 2),
        (["--coordinator", "tcp://127.0.0.1:5555", "--bind", "0.0.0.0"], 6),
        (["--coordinator", "tcp://127.0.0.1:5555", "--device", "cpu,cpu"], 2),
        (["--coordinator", "tcp://127.0.0.1:5555", "--device", "gpu"], 2),
    ],
)
def test_it_ends_before_anybody_is_started(words, exit_code, monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_MODEL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("HYDRA_CLUSTER_JOIN_TOKEN", raising=False)
    monkeypatch.setattr(PARENT, lambda *args: pytest.fail("it was started"))
    done = CliRunner().invoke(cli, ["worker", "--node-id", "far", "--device", "cpu", *words])
    assert isinstance(done.exception, Complaint) and done.exception.exit_code == exit_code, done.output


def test_with_a_token_it_tells_others_where_they_can_reach_it(monkeypatch, tmp_path):
    specs = []
    monkeypatch.setattr(PARENT, lambda spec, settings: specs.append(spec) or 0)
    monkeypatch.setattr("hydra.processes.listening.settle_port", lambda name, end, setting, holders: (end, None))
    monkeypatch.setenv("HYDRA_MODEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HYDRA_CLUSTER_JOIN_TOKEN", "sixteen letters or more")
    argv = ["worker", "--node-id", "far", "--device", "cpu", "--coordinator", "tcp://den:5555"]
    assert CliRunner().invoke(cli, argv).exit_code == 0
    (spec,) = specs
    assert (spec.zmq.router_addr, spec.zmq.broadcast_addr) == ("tcp://den:5555", "tcp://den:5557")
    assert (spec.pipeline_bind, spec.store_bind) == (f"tcp://{OWN}:6000", f"tcp://{OWN}:6001")
    assert spec.advertise_host == OWN


def test_a_name_that_nobody_knows_ends_it(monkeypatch):
    monkeypatch.undo()

    def unknown(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(Complaint) as caught:
        command.find_place(HostPort("no.such.host.invalid", 5555), None, "")
    assert caught.value.exit_code == 5 and "Name or service not known" in caught.value.cause
