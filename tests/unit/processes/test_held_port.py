"""Between being found free and being listened at, and between two listeners, a port is nobody else's."""

import socket
import struct
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hydra.complaint import Complaint
from hydra.processes.held_port import HeldPort
from hydra.processes.host_port import HostPort
from hydra.processes.listening import settle_port
from hydra.processes.port_holders import PortHolders
from hydra.protocol.loopback import LOOPBACK
from hydra.protocol.wires.zmq_wire import ZmqWires

IP_LOCAL_PORT_RANGE = 51  # of Linux 6.3 and later: high << 16 | low


def stranger(port: int) -> socket.socket:
    """A socket to which the system, asked for any port, has only this one to give."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
    except OSError:
        made.close()
        pytest.skip("this system cannot be made to give a certain port")
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="held on Linux only")
def test_the_system_gives_a_held_port_to_nobody() -> None:
    held = HeldPort.take(LOOPBACK)
    with socket.create_server((LOOPBACK, 0)) as server:
        with stranger(held.port) as listener, pytest.raises(OSError):
            listener.bind((LOOPBACK, 0))
        with stranger(held.port) as caller, pytest.raises(OSError):
            caller.connect(server.getsockname())
        port = held.port
        del held  # let go
        with stranger(port) as caller:
            caller.connect(server.getsockname())
            assert caller.getsockname()[1] == port


NO_CARDS = PortHolders(Path("/nonexistent"))


def listens(addr: str) -> None:
    """One life of a listener; its port is let go of before this returns."""
    with closing(ZmqWires()) as wires:
        source = wires.blocking_source(addr, 4)
        assert source.addr == addr
        with pytest.raises(Complaint) as caught:
            settle_port("--pipeline-port", HostPort.parse("it", addr), "--pipeline-port", NO_CARDS)
        assert caught.value.exit_code == 4 and "choose another with --pipeline-port" in caught.value.fix
        source.close()


def test_its_listeners_come_and_go() -> None:
    addr, held = settle_port("[zmq] router_addr", HostPort(LOOPBACK, 0), "HYDRA_ZMQ_ROUTER_ADDR", NO_CARDS)
    for _ in range(2):
        listens(str(addr))
    assert str(addr).endswith(f":{held.port}")
