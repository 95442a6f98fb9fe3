"""The store lane between real processes: a server that is killed or stopped in mid-transfer, and where it goes on."""

import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.range_window import OPEN_MAX, WINDOW_CHUNK_BYTES
from hydra.protocol.wires.zmq_sockets import as_reached
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.store.cache.range_source import SourceFault, SourceUnfit
from hydra.store.lending.lane_source import LaneSource
from tests.wire.store_child import PRINT, TOKEN

ROOT = Path(__file__).parents[2]
SIZE = 12 * WINDOW_CHUNK_BYTES + 345
ANY = "tcp://127.0.0.1:0"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("lent")
    (made / "model").write_bytes(random.Random(1).randbytes(SIZE))
    return made


@pytest.fixture
def wires():
    made = ZmqWires()
    yield made
    made.close()


@contextmanager
def serving(directory, addr=ANY, disk_s=0.0):
    """(process, address) of a server that is up."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_TEST_DISK_S": str(disk_s)}
    argv = [sys.executable, "-m", "tests.wire.store_child", addr, str(directory)]
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        said = process.stdout.readline().split()
        assert said[:1] == ["serving"], said
        yield process, said[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def source(wires, *addrs, auth=TOKEN, silence_s=20.0):
    return LaneSource([Endpoint(addr) for addr in addrs], PRINT, wires.store_line, auth, silence_s)


def take(pieces, n):
    return b"".join(next(pieces) for _ in range(n))


def test_a_file_comes_over_a_real_socket_and_strangers_get_nothing(directory, wires):
    whole = (directory / "model").read_bytes()
    with serving(directory) as (_, addr):
        assert b"".join(source(wires, addr).read("model", 0, SIZE)) == whole
        assert b"".join(source(wires, addr).read("model", 5, 6)) == whole[5:11]
        for auth, file, offset in (
            ("", "model", 0),
            ("wrong", "model", 0),
            (TOKEN, "../lent/model", 0),
            (TOKEN, str(directory / "model"), 0),
            (TOKEN, "model", SIZE),
        ):
            with pytest.raises(SourceUnfit):
                list(source(wires, addr, auth=auth).read(file, offset, 1))


@pytest.mark.parametrize("addr", ["tcp://127.0.0.1:1", "tcp://", "tcp://127.0.0.1:x"])
def test_an_address_where_nobody_is_is_a_fault_of_that_address_only(addr, directory, wires):
    with pytest.raises(SourceFault) as caught:
        list(source(wires, addr).read("model", 0, 1))
    assert not isinstance(caught.value, SourceUnfit)
    with serving(directory) as (_, second):
        assert len(b"".join(source(wires, addr, second).read("model", 0, 9))) == 9


@pytest.mark.parametrize("addr", ["ipc:///tmp/socket", "inproc://store", "", "file:///etc/passwd"])
def test_only_other_machines_are_asked(addr, wires):
    with pytest.raises(SourceUnfit):
        list(source(wires, addr).read("model", 0, 1))


def test_a_server_killed_in_the_middle_of_a_transfer_is_replaced_by_a_peer_at_once(directory, wires):
    whole = (directory / "model").read_bytes()
    with serving(directory, disk_s=0.02) as (victim, first), serving(directory) as (_, second):
        patient = source(wires, first, second, silence_s=3600.0)  # the broken connection says enough
        pieces = patient.read("model", 0, SIZE)
        got = take(pieces, 3)
        victim.kill()
        assert got + b"".join(pieces) == whole


def test_a_server_that_comes_back_goes_on_at_the_same_byte(directory, wires):
    whole = (directory / "model").read_bytes()
    with serving(directory, disk_s=0.02) as (victim, addr):
        lane = source(wires, addr)
        pieces = lane.read("model", 0, SIZE)
        got = take(pieces, 5)
        victim.kill()
        victim.wait()
        with pytest.raises(SourceFault) as caught:
            for piece in pieces:
                got += piece
        assert not isinstance(caught.value, SourceUnfit)
    assert got == whole[: len(got)] and len(got) <= (5 + OPEN_MAX) * WINDOW_CHUNK_BYTES
    with serving(directory, addr):
        assert got + b"".join(lane.read("model", len(got), SIZE - len(got))) == whole


def test_a_stopped_server_is_a_silence_and_the_peer_goes_on(directory, wires):
    whole = (directory / "model").read_bytes()
    with serving(directory, disk_s=0.02) as (victim, first), serving(directory) as (_, second):
        pieces = source(wires, first, second, silence_s=1.0).read("model", 0, SIZE)
        got = take(pieces, 2)
        os.kill(victim.pid, signal.SIGSTOP)
        assert got + b"".join(pieces) == whole


def test_an_asker_that_stops_taking_leaves_the_server_to_the_others(directory, wires):
    whole = (directory / "model").read_bytes()
    with serving(directory) as (_, addr):
        lazy = [source(wires, addr).read("model", 0, SIZE) for _ in range(8)]
        first = [next(pieces) for pieces in lazy]
        assert b"".join(source(wires, addr).read("model", 0, SIZE)) == whole
        assert all(a + b"".join(rest) == whole for a, rest in zip(first, lazy, strict=True))


@pytest.mark.parametrize(
    ("addr", "via", "reached"),
    [
        ("tcp://0.0.0.0:7", "10.0.0.5", "tcp://10.0.0.5:7"),
        ("tcp://*:7", "10.0.0.5", "tcp://10.0.0.5:7"),
        ("tcp://[::]:7", "10.0.0.5", "tcp://10.0.0.5:7"),
        ("tcp://10.0.0.9:7", "10.0.0.5", "tcp://10.0.0.9:7"),
        ("tcp://127.0.0.1:7", "10.0.0.5", "tcp://127.0.0.1:7"),
        ("tcp://0.0.0.0:7", "", "tcp://0.0.0.0:7"),
    ],
)
def test_whoever_is_everywhere_is_where_the_coordinator_was_found(addr, via, reached):
    assert as_reached(addr, via) == reached


@pytest.mark.skipif(sys.platform != "linux", reason="only there is all of 127/8 this machine")
def test_a_lane_bound_everywhere_is_reached_by_way_of_the_coordinators_host(directory):
    wires = ZmqWires("tcp://127.0.0.2:5555")
    try:
        with serving(directory, "tcp://127.0.0.2:0") as (_, addr):
            everywhere = addr.replace("127.0.0.2", "0.0.0.0")
            assert len(b"".join(source(wires, everywhere).read("model", 0, 9))) == 9
            left = wires.blocking_source("tcp://127.0.0.2:0", 4)
            link = wires.blocking_link(Endpoint(left.addr.replace("127.0.0.2", "0.0.0.0")), 4)
            while not link.try_send([b"hello"]):
                pass
            assert left.receive(20.0) == (b"hello",)
            link.close()
            left.close()
    finally:
        wires.close()
