"""Two machines that are this one: network namespaces, joined by a router that can swallow what goes to a TCP port.

Each machine has an address, a loopback of its own, and nothing else on its network. What the router swallows it
swallows in silence, connections that stand included, as a firewall that drops: who dials waits, who sends hears
nothing. Works for root and, where the system lets users have namespaces, for others. Knows nothing of what runs there.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import attrs

from scenarios.processes import ROOT

ADDRESSES = {"a": "10.77.1.2", "b": "10.77.2.2"}
GATEWAYS = {"a": "10.77.1.1", "b": "10.77.2.1"}
HOLD = ("sh", "-c", "echo made; exec cat")  # lives until its standard input ends: with us, at the latest


class NoNamespaces(Exception):
    """This system does not let us make network namespaces; says what was tried and what the system answered."""


@attrs.define(eq=False)
class TwoMachines:
    """Machines "a" and "b". `_inside` has the words that start a program in each, and in the "router"."""

    _inside: dict[str, tuple[str, ...]]
    _dropped: set[tuple[str, int]] = attrs.field(factory=set, init=False)

    def inside(self, machine: str) -> tuple[str, ...]:
        """What must stand before a command to run it there."""
        return self._inside[machine]

    def drop(self, machine: str, port: int) -> None:
        """Nothing more gets to that port of that machine; answers from it still pass, and so do all other ports."""
        if (machine, port) not in self._dropped:
            self._rule("add", machine, port)
            self._dropped.add((machine, port))

    def let_pass(self, machine: str, port: int) -> None:
        if (machine, port) in self._dropped:
            self._rule("del", machine, port)
            self._dropped.remove((machine, port))

    @contextmanager
    def dropping(self, machine: str, port: int) -> Iterator[None]:
        self.drop(machine, port)
        try:
            yield
        finally:
            self.let_pass(machine, port)

    @contextmanager
    def bridge(self, machine: str, port: int) -> Iterator[int]:
        """A port on our own loopback that leads to `port` on the machine's loopback."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            fd = listener.fileno()
            argv = [*self.inside(machine), sys.executable, "-m", "tests.e2e.bridge", str(fd), str(port)]
            process = subprocess.Popen(argv, cwd=ROOT, pass_fds=(fd,))
            try:
                yield int(listener.getsockname()[1])
            finally:
                process.kill()
                process.wait()

    def _rule(self, verb: str, machine: str, port: int) -> None:
        rule = f"ip rule {verb} to {ADDRESSES[machine]} ipproto tcp dport {port} blackhole"
        _run([*self.inside("router"), *rule.split()])


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Raises NoNamespaces. Whoever still runs on a machine keeps it alive; with the last of them it is gone."""
    root = os.geteuid() == 0
    with ExitStack() as holders:
        router = holders.enter_context(_holder(["unshare", *([] if root else ["-r"]), "-n", *HOLD]))
        enter = ["nsenter", "-t", str(router), *([] if root else ["-U", "--preserve-credentials"])]
        inside = {"router": (*enter, "-n")}
        pids = {"router": router}
        for machine in ADDRESSES:
            pids[machine] = holders.enter_context(_holder([*enter, "unshare", "-n", *HOLD]))
            user = [] if root else ["-U", "--preserve-credentials"]
            inside[machine] = ("nsenter", "-t", str(pids[machine]), *user, "-n")
        for machine, address in ADDRESSES.items():
            _join(inside, machine, pids[machine], address)
        _run([*inside["router"], "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        yield TwoMachines(inside)


def _join(inside: dict[str, tuple[str, ...]], machine: str, pid: int, address: str) -> None:
    """A cable from the machine to the router, and the way to everybody else through it."""
    router, here = f"to-{machine}", inside[machine]
    _run([*inside["router"], "ip", "link", "add", router, "type", "veth", "peer", "name", "wire", "netns", str(pid)])
    _run([*inside["router"], "ip", "address", "add", f"{GATEWAYS[machine]}/24", "dev", router])
    _run([*inside["router"], "ip", "link", "set", router, "up"])
    for words in (f"address add {address}/24 dev wire", "link set lo up", "link set wire up"):
        _run([*here, "ip", *words.split()])
    _run([*here, "ip", "route", "add", "default", "via", GATEWAYS[machine]])


@contextmanager
def _holder(argv: Sequence[str]) -> Iterator[int]:
    """The pid of a process that does nothing but be in its namespaces."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError as missing:
        raise NoNamespaces(f"there is no {argv[0]} here: {missing}") from missing
    with process:
        assert process.stdin and process.stdout and process.stderr
        if process.stdout.readline() != "made\n":
            raise NoNamespaces(f"{' '.join(argv)} said: {process.stderr.read().strip()}")
        try:
            yield process.pid
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError as missing:
        raise NoNamespaces(f"there is no {argv[0]} here: {missing}") from missing
    if done.returncode != 0:
        raise NoNamespaces(f"{' '.join(argv)} said: {done.stderr.strip()}")
