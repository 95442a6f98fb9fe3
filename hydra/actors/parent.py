"""The shell around the supervisor: it starts processes, hears their pipes, and has a line to the coordinator.

The parent computes nothing and opens no port but the HTTP one, which it hands down, so that a frontend can be
restarted without losing a connection that waits in the backlog. It never imports torch.
"""

import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen

import attrs
import structlog
import trio

from hydra.actors.cell import House
from hydra.actors.lifeline import FAMILY_ENV, READY
from hydra.actors.machine import Effect
from hydra.actors.member import Member, Start, TurnedAway
from hydra.actors.post import Post
from hydra.actors.supervisor import (
    Began,
    ChildBeat,
    ChildGone,
    ChildReady,
    ChildStarted,
    Finish,
    SayReady,
    SignalChild,
    StartChild,
    StopAsked,
    Supervisor,
)
from hydra.protocol.ids import ActorName, Generation, NodeId
from hydra.protocol.messages import PROTOCOL_VERSION, Heartbeat, Hello
from hydra.protocol.wire import Spoke

log = structlog.get_logger()

MEMBER = ActorName("member")
PARENT = ActorName("parent")


@attrs.frozen(kw_only=True)
class ChildCommand:
    """How a child is started. `{read_fd}` and `{write_fd}` in argv become its lifeline's descriptors, `{been_ready}`
    whether all of it has been ready before: "yes" or "no".
    """

    argv: tuple[str, ...]
    pass_fds: tuple[int, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Running:
    process: "Popen[bytes]"
    pipe_to_child: int
    pipe_from_child: int


@attrs.define(eq=False)
class Parent:
    """Runs the children of one `up` or `worker`. `exit_code` is set when `run` returns."""

    supervisor: Supervisor
    commands: Mapping[NodeId, ChildCommand]
    spoke: Spoke
    node_id: NodeId
    host: str
    auth: str
    say_ready: Callable[[], None]
    family: str = attrs.field(factory=lambda: secrets.token_hex(16), repr=False)  # see Hello
    exit_code: int = 0
    been_ready: bool = False
    house: House = attrs.field(init=False)
    _running: dict[NodeId, _Running] = attrs.field(factory=dict, init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _post: Post = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._post = Post(lambda _, frames: self.spoke.send_nowait(frames), self.spoke.receive, MEMBER)
        self.house = House(self.spoke.peer, self._post.carry)
        member = Member(greet=self._hello, beat=self._heartbeat, siblings=(PARENT,))
        self.house.add(MEMBER, member, self._perform)
        self.house.add(PARENT, self.supervisor, self._perform)

    async def run(self) -> None:
        """Until the last child is gone. Nothing is left behind, whatever happens in here."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.house.keep_timers)
                self._nursery.start_soon(self._post.pump, self.house)
                self._nursery.start_soon(self._hear_signals)
                self.house.post(PARENT, Began())
                self.house.post(MEMBER, Start())
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.wait()

    async def _hear_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                log.info("stopping", signal=number)
                self.house.post(PARENT, StopAsked())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartChild(name=name):
                self._start(name)
            case SignalChild(name=name, pid=pid, number=number):
                running = self._running.get(name)
                if running is not None and running.process.pid == pid:
                    running.process.send_signal(number)
            case SayReady():
                self.been_ready = True
                self.say_ready()
            case Finish(exit_code=exit_code, why=why):
                log.info("all children are gone", why=why)
                self.exit_code = exit_code
                self._nursery.cancel_scope.cancel()
            case TurnedAway(refusal=refusal):
                log.warning("turned away", code=refusal.code, why=refusal.message)
            case _:
                raise AssertionError(f"a parent cannot do {effect!r}")

    def _start(self, name: NodeId) -> None:
        command = self.commands[name]
        child_reads, parent_writes = os.pipe()
        parent_reads, child_writes = os.pipe()
        been_ready = "yes" if self.been_ready else "no"
        argv = [part.format(read_fd=child_reads, write_fd=child_writes, been_ready=been_ready) for part in command.argv]
        process = Popen(
            argv,
            pass_fds=(child_reads, child_writes, *command.pass_fds),
            env={**os.environ, "PYTHONPATH": _python_path(), **command.env, FAMILY_ENV: self.family},
            process_group=0,  # a Ctrl-C at the terminal reaches the parent alone, which knows the order
        )
        os.close(child_reads)
        os.close(child_writes)
        os.set_blocking(parent_reads, False)
        self._running[name] = _Running(process, parent_writes, parent_reads)
        log.info("child started", child=name, pid=process.pid)
        self._nursery.start_soon(self._watch, name, self._running[name])
        self.house.post(PARENT, ChildStarted(name, process.pid))

    async def _watch(self, name: NodeId, running: _Running) -> None:
        """Hears a child's beats until its pipe closes, then collects its exit."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, name, running)
            returncode = await _wait(running.process)
            nursery.cancel_scope.cancel()
        os.close(running.pipe_from_child)
        os.close(running.pipe_to_child)
        if self._running.get(name) is running:
            del self._running[name]
        log.info("child gone", child=name, pid=running.process.pid, returncode=returncode)
        self.house.post(PARENT, ChildGone(name, running.process.pid, returncode))

    async def _hear(self, name: NodeId, running: _Running) -> None:
        while True:
            await trio.lowlevel.wait_readable(running.pipe_from_child)
            words = os.read(running.pipe_from_child, 4096)
            if not words:
                return
            self.house.post(PARENT, ChildBeat(name))
            if READY in words:
                self.house.post(PARENT, ChildReady(name))

    def _hello(self, term: int) -> Hello:
        return Hello(
            node_id=self.node_id,
            role="parent",
            version=PROTOCOL_VERSION,
            capabilities=(),
            auth=self.auth,
            family=self.family,
            host=self.host,
            pid=os.getpid(),
            term_seen=term,
        )

    def _heartbeat(self, generation: Generation) -> Heartbeat:
        return Heartbeat(generation=generation, memory_free_bytes=0, stale_dropped=0)


async def _wait(process: "Popen[bytes]") -> int:
    """The exit code, as soon as the process is gone."""
    pidfd = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    return process.wait()


def python_child(role: str, spec_json: str, *more: str, module: str = "hydra") -> Sequence[str]:
    """The command line of one of our own children: a command of `module` that takes a lifeline and a spec.

    It imports nothing from where it happens to stand, which may be the directory of a model.
    """
    escaped = spec_json.replace("{", "{{").replace("}", "}}")
    return (sys.executable, "-P", "-m", module, role, "--lifeline", "{read_fd},{write_fd}", "--spec", escaped, *more)


def _python_path() -> str:
    """Where a child finds us, who may have been started from a directory that it does not look into."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
