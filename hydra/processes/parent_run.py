"""A parent's whole life, from its sockets to its exit code, and what it says to the person who started it meanwhile.

That the coordinator is silent (to a worker's parent), that it turned us away, and what a Ctrl-C waits for.
"""

import secrets
import socket
from collections.abc import Callable, Mapping

import attrs
import trio

from hydra.actors.families.parent import ChildCommand, Parent
from hydra.actors.families.supervisor import Supervisor
from hydra.complaint import Complaint
from hydra.log.standard_streams import print_line
from hydra.processes.host_port import HostPort
from hydra.processes.open_answers import count_open, words
from hydra.processes.own_identity import new_peer_id, own_identity
from hydra.processes.silence import tell_of_silence
from hydra.processes.turned_away import parents_doorstep
from hydra.protocol.ids import NodeId
from hydra.protocol.refusal import Refusal
from hydra.protocol.settings.zmq import ZmqSettings

SILENT_S = 6.0  # a coordinator speaks twice a second; a restart of it takes less than this


def _say(line: str) -> None:
    print_line(line, error=True)


@attrs.define(eq=False, kw_only=True)
class ParentRun:
    """One parent with its children. `url`: of the API, where this parent has one; then the coordinator is its child."""

    supervisor: Supervisor
    commands: Mapping[NodeId, ChildCommand]
    zmq: ZmqSettings  # as this machine reaches the coordinator
    name: str
    join_token: str
    say_ready: Callable[[], None] = lambda: None
    url: str = ""
    drain_timeout: float = 0.0
    say: Callable[[str], None] = _say
    _complaints: list[Complaint] = attrs.field(factory=list, init=False)
    _stops: int = attrs.field(default=0, init=False)
    _been_ready: bool = attrs.field(default=False, init=False)
    _welcome_s: float = attrs.field(default=0.0, init=False)  # when the coordinator last knew us

    def until_over(self) -> int:
        """Returns the exit code. Raises Complaint when the coordinator will not have us."""
        return trio.run(self.live)

    async def live(self) -> int:
        """The same, where an event loop runs already."""
        from hydra.protocol.wires.zmq_wire import ZmqWires

        node_id = f"{self.name}-{socket.gethostname()}-{secrets.token_hex(2)}"
        wires, doorstep = ZmqWires(), parents_doorstep()
        self._welcome_s = trio.current_time()
        with trio.CancelScope() as everything:

            def turned_away(refusal: Refusal) -> None:
                complaint = doorstep.hear(refusal, trio.current_time())
                if complaint is None and doorstep.is_news:
                    self.say(f"turned away: {refusal.message}")
                elif complaint is not None and not self._complaints:
                    self._complaints.append(complaint)
                    everything.cancel()

            parent = Parent(
                supervisor=self.supervisor,
                commands=self.commands,
                spoke=wires.spoke(new_peer_id(node_id), self.zmq.router_addr, self.zmq.broadcast_addr),
                identity=own_identity("parent", node_id, self.join_token),
                say_ready=self.ready,
                turned_away=turned_away,
                before_stop=self.before_stop,
            )
            try:
                async with trio.open_nursery() as nursery:
                    if not self.url:
                        at = HostPort.parse("--coordinator", self.zmq.router_addr)
                        nursery.start_soon(tell_of_silence, lambda: self._silent_s(parent), at, self.say)
                    await parent.run()
                    nursery.cancel_scope.cancel()
            finally:
                wires.close()
        if self._complaints:
            raise self._complaints[0]
        return parent.exit_code

    def _silent_s(self, parent: Parent) -> float:
        """How long we have not been welcome, or have heard nothing; 0 while all is well."""
        now_s = trio.current_time()
        if parent.membership.member.generation is not None and parent.membership.silence_s() < SILENT_S:
            self._welcome_s = now_s
            return 0.0
        return now_s - self._welcome_s

    def ready(self) -> None:
        self._been_ready = True
        self.say_ready()

    async def before_stop(self) -> None:
        """The first Ctrl-C of an `up` says what it waits for; one that comes meanwhile is heard right after."""
        self._stops += 1
        if self.url and self._stops == 1:
            n_open = await count_open(self.url) if self._been_ready else 0  # nobody has been answered yet
            self.say(words(n_open, self.drain_timeout))
