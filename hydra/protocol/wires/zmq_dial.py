"""Whether somebody answers at an address, as an end of the lane in question: a whole handshake of ZeroMQ, then goodbye.

Carries no message and leaves nothing behind. What nobody answered is asked once more, as a plain TCP connection, to say
in words what is wrong.
"""

import os

import trio
import zmq
from zmq.utils.monitor import parse_monitor_message

from hydra.protocol.faults import WireError
from hydra.protocol.wires.wire import LaneName
from hydra.protocol.wires.zmq_sockets import Ears, Socket, connect, make_socket

KINDS: dict[LaneName, int] = {"steps": zmq.PUSH, "store": zmq.DEALER}
WORDS_S = 0.5  # for the words
HEARD_BYTES_MAX = 1024  # the handshake itself is the most that is heard


async def dial(context: "zmq.Context[Socket]", addr: str, lane: LaneName, timeout_s: float) -> str:
    """Empty when it answered in time; else why not."""
    socket = make_socket(context, KINDS[lane], 1, HEARD_BYTES_MAX)
    ears = Ears(socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED))
    try:
        connect(socket, addr)
        with trio.move_on_after(timeout_s):
            await ears.hear(lambda: _handshakes(ears.sockets[0]))
            return ""
    except WireError as error:
        return str(error)
    finally:
        if not socket.closed:
            socket.disable_monitor()
        ears.close()
        socket.close()
    return await _in_words(addr)


def _handshakes(monitor: Socket) -> list[str]:
    found: list[str] = []
    while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
        if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            found.append(str(event["endpoint"]))
    return found


async def _in_words(addr: str) -> str:
    host, _, port = addr.partition("://")[2].rpartition(":")
    try:
        with trio.fail_after(WORDS_S):
            found = await trio.socket.getaddrinfo(host.strip("[]"), int(port), type=trio.socket.SOCK_STREAM)
            family, kind, number, _, where = found[0]
            with trio.socket.socket(family, kind, number) as plain:
                await plain.connect(where)
    except trio.TooSlowError:
        return "no answer"
    except OSError as error:
        if error.errno is None or error.errno <= 0:  # of the resolver, which has its own words
            return str(error.strerror or error).lower()
        return os.strerror(error.errno).lower()
    except ValueError:
        return "it is no address: tcp://HOST:PORT"
    return "what listens there is no such process, or it is stopped"
