"""What a parent takes before it starts anybody: nobody listens for other machines without a token, and whoever finds a
port or a state directory taken is told by whom.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydra.complaint import Complaint
from hydra.processes.host_port import HostPort
from hydra.processes.listening import lock_state, open_http, require_token, settle_port
from hydra.processes.port_holders import PortHolders

NEAR = ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"]
FAR = ["*", "0.0.0.0", "192.168.0.10", "[::]", "den.local"]


@pytest.fixture
def holders(tmp_path: Path) -> PortHolders:
    return PortHolders.of(tmp_path)


@pytest.mark.parametrize("host", NEAR)
def test_on_loopback_nothing_is_asked(host: str) -> None:
    require_token("store_addr", HostPort(host, 5555), "")


@pytest.mark.parametrize("host", FAR)
def test_off_loopback_a_token_must_be_set(host: str) -> None:
    with pytest.raises(Complaint) as caught:
        require_token("store_addr", HostPort(host, 5555), "")
    assert caught.value.exit_code == 6 and f"tcp://{host}:5555" in caught.value.what
    require_token("store_addr", HostPort(host, 5555), "open-sesame")


def test_a_taken_port_names_its_holder_while_that_lives(holders: PortHolders) -> None:
    with open_http("127.0.0.1:0", holders) as taken:
        port = taken.getsockname()[1]
        with holders.card("the cluster at http://127.0.0.1:8080", [port]):
            for attempt in (
                lambda: open_http(f"127.0.0.1:{port}", holders),
                lambda: settle_port("[zmq] router_addr", HostPort("127.0.0.1", port), "--ports", holders),
            ):
                with pytest.raises(Complaint) as caught:
                    attempt()
                assert caught.value.exit_code == 4 and "--ports" in caught.value.fix
                assert caught.value.cause == f"held by the cluster at http://127.0.0.1:8080 (pid {os.getpid()})"
        with pytest.raises(Complaint) as caught:
            open_http(f"127.0.0.1:{port}", holders)
        assert "held by" not in caught.value.cause and f"--http 127.0.0.1:{port + 1}" in caught.value.fix
        with open_http(f"127.0.0.1:{port}", holders, or_next=True) as other:
            assert port < other.getsockname()[1]


def test_cards_of_the_dead_and_of_strangers_are_not_believed(holders: PortHolders) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with holders.card("here", [7]):
        (mine,) = holders.folder.iterdir()
        said = json.loads(mine.read_text())
        for name, other in {
            "dead": {**said, "pid": gone.pid, "ports": [8]},
            "pid given anew": {**said, "started_s": said["started_s"] - 3600, "ports": [8]},
            "no card": [8],
            "no pid": {"ports": [8]},
        }.items():
            (holders.folder / f"{name}.json").write_text(json.dumps(other))
        (holders.folder / "garbage.json").write_bytes(b"\xff{")
        assert holders.of_port(8) is None and str(holders.of_port(7)) == f"here (pid {os.getpid()})"
        with holders.card("here again", [9]):
            assert [path.name for path in holders.folder.iterdir()] == [mine.name], "they are swept away"
    assert not list(holders.folder.iterdir())


def test_a_card_that_cannot_be_written_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with PortHolders.of(tmp_path).card("here", [7]):
        pass


def test_a_state_directory_in_use_names_its_cluster(tmp_path: Path, holders: PortHolders) -> None:
    state = tmp_path / "state"
    locked = lock_state(state, holders)
    try:
        with pytest.raises(Complaint, match="is in use") as caught:
            lock_state(state, holders)
        assert "another cluster keeps" in caught.value.cause
        with holders.card("the cluster at http://a:1", [7], state), pytest.raises(Complaint) as caught:
            lock_state(state, holders)
        assert f"the cluster at http://a:1 (pid {os.getpid()})" in caught.value.cause and caught.value.exit_code == 4
    finally:
        os.close(locked)


@pytest.mark.parametrize("addr", ["127.0.0.1:99999", "127.0.0.1", ":8080", "http://127.0.0.1:8080", "h:٨", "h:-1"])
def test_what_is_no_http_address_is_refused(holders: PortHolders, addr: str) -> None:
    with pytest.raises(Complaint) as caught:
        open_http(addr, holders)
    assert caught.value.exit_code == 2


def test_a_host_that_is_none_of_ours_is_told_from_a_taken_port(holders: PortHolders) -> None:
    for attempt in (
        lambda: open_http("192.0.2.1:8080", holders),
        lambda: settle_port("--bind", HostPort("192.0.2.1", 6000), "--bind", holders),
    ):
        with pytest.raises(Complaint) as caught:
            attempt()
        assert caught.value.exit_code == 4 and "address of this machine" in caught.value.fix
