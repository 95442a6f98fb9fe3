"""The shell around the supervisor: it starts processes, hears their pipes, and has a line to the coordinator.

The parent computes nothing and opens no port but the HTTP one, which it hands down, so that a frontend can be
restarted without losing a connection that waits in the backlog. It never imports torch.
"""

import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import attrs
import structlog
import trio

from hydra.actors.core.host import ActorHost
from hydra.actors.core.identity import Identity
from hydra.actors.core.machine import Effect
from hydra.actors.core.names import PARENT
from hydra.actors.families.lifeline import FAMILY_ENV, READY, UP
from hydra.actors.families.member_host import MemberHost, log_turned_away
from hydra.actors.families.parent_journal import ParentJournal
from hydra.actors.families.supervisor import (
    Began,
    ChildBeat,
    ChildGone,
    ChildNotStarted,
    ChildReady,
    ChildStarted,
    ChildUp,
    FinishParent,
    SayReady,
    SignalChild,
    StartChild,
    StopAsked,
    Supervisor,
    TellDeath,
    TellGivenUp,
)
from hydra.protocol.ids import NodeId
from hydra.protocol.refusal import Refusal
from hydra.protocol.wires.wire import Spoke

log = structlog.get_logger()


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
    """A child's process, and the descriptors by which it is heard."""

    process: "Popen[bytes]"
    pidfd: int
    pipe_to_child: int
    pipe_from_child: int

    def close(self) -> None:
        for fd in (self.pidfd, self.pipe_to_child, self.pipe_from_child):
            os.close(fd)


async def _at_once() -> None:
    await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Parent:
    """Runs the children of one `up` or `worker`. `exit_code` is set when `run` returns.

    `before_stop` is awaited at each signal to stop, before anybody is told; it must not take long.
    """

    supervisor: Supervisor
    commands: Mapping[NodeId, ChildCommand]
    spoke: Spoke
    identity: Identity  # but for the secret of its family
    say_ready: Callable[[], None]
    turned_away: Callable[[Refusal], None] = log_turned_away
    before_stop: Callable[[], Awaitable[None]] = _at_once
    family: str = attrs.field(factory=lambda: secrets.token_hex(16), repr=False)  # see Hello
    exit_code: int = 0
    been_ready: bool = False
    membership: MemberHost = attrs.field(init=False)
    actor_host: ActorHost = attrs.field(init=False)
    _running: dict[NodeId, _Running] = attrs.field(factory=dict, init=False)
    _nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        identity = attrs.evolve(self.identity, family=self.family)
        self.membership = MemberHost(
            self.spoke, identity, (PARENT,), self.turned_away, ParentJournal(self.supervisor.plans)
        )
        self.actor_host = self.membership.actor_host
        self.actor_host.add(PARENT, self.supervisor, self._perform)

    async def run(self) -> None:
        """Until the last child is gone. Nothing is left behind, whatever happens in here."""
        self.membership.gateway.last_heard_s = trio.current_time()  # a silence is counted from here
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._hear_signals)
                self.actor_host.post(PARENT, Began())
                self.membership.start(self._nursery)
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.wait()

    async def _hear_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                await self.before_stop()
                log.info("stopping", signal=number)
                self.actor_host.post(PARENT, StopAsked())

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
            case TellDeath() | TellGivenUp():
                pass  # the journal has them
            case FinishParent(exit_code=exit_code, why=why, asked=asked):
                if not asked:
                    log.error("ending by itself", why=why, exit_code=exit_code)
                log.info("all children are gone", why=why)
                self.exit_code = exit_code
                self._nursery.cancel_scope.cancel()
            case _:
                raise AssertionError(f"a parent cannot do {effect!r}")

    def _start(self, name: NodeId) -> None:
        """A machine that has no process or descriptor to spare now may have one later: that ends nothing."""
        try:
            running = _begin(self.commands[name], self.family, been_ready=self.been_ready)
        except OSError as error:
            self.actor_host.post(PARENT, ChildNotStarted(name, str(error)))
            return
        self._running[name] = running
        self._nursery.start_soon(self._watch, name, running)
        self.actor_host.post(PARENT, ChildStarted(name, running.process.pid))

    async def _watch(self, name: NodeId, running: _Running) -> None:
        """Hears a child's beats until its pipe closes, then collects its exit."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, name, running)
            await trio.lowlevel.wait_readable(running.pidfd)
            returncode = running.process.wait()
            nursery.cancel_scope.cancel()
        running.close()
        if self._running.get(name) is running:
            del self._running[name]
        self.actor_host.post(PARENT, ChildGone(name, running.process.pid, returncode))

    async def _hear(self, name: NodeId, running: _Running) -> None:
        while True:
            await trio.lowlevel.wait_readable(running.pipe_from_child)
            words = os.read(running.pipe_from_child, 4096)
            if not words:
                return
            self.actor_host.post(PARENT, ChildBeat(name))
            if UP in words:
                self.actor_host.post(PARENT, ChildUp(name))
            if READY in words:
                self.actor_host.post(PARENT, ChildReady(name))


def _begin(command: ChildCommand, family: str, *, been_ready: bool) -> _Running:
    """Starts a child. Raises OSError, and then nothing of it is left."""
    with ExitStack() as ours, ExitStack() as the_childs:
        child_reads, parent_writes = os.pipe()
        the_childs.callback(os.close, child_reads)
        ours.callback(os.close, parent_writes)
        parent_reads, child_writes = os.pipe()
        the_childs.callback(os.close, child_writes)
        ours.callback(os.close, parent_reads)
        ready = "yes" if been_ready else "no"
        process = Popen(
            [part.format(read_fd=child_reads, write_fd=child_writes, been_ready=ready) for part in command.argv],
            pass_fds=(child_reads, child_writes, *command.pass_fds),
            env={**os.environ, "PYTHONPATH": _python_path(), **command.env, FAMILY_ENV: family},
            process_group=0,  # a Ctrl-C at the terminal reaches the parent alone, which knows the order
        )
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        os.set_blocking(parent_reads, False)
        ours.pop_all()
        return _Running(process, pidfd, parent_writes, parent_reads)


def python_child(role: str, spec_json: str, *more: str, module: str = "hydra") -> Sequence[str]:
    """The command line of one of our own children: a command of `module` that takes a lifeline and a spec.

    It imports nothing from where it happens to stand, which may be the directory of a model.
    """
    escaped = spec_json.replace("{", "{{").replace("}", "}}")
    return (sys.executable, "-P", "-m", module, role, "--lifeline", "{read_fd},{write_fd}", "--spec", escaped, *more)


def _python_path() -> str:
    """Where a child finds us, who may have been started from a directory that it does not look into."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
