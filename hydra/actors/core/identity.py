"""What a process says of itself: in its greeting who it is and what it brings, in every beat how it fares.

The one place where Hello and Heartbeat are built. Knows neither when they are said nor what is made of them.
"""

from collections.abc import Callable

import attrs

from hydra.actors.core.ports import Compute
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Generation, NodeId
from hydra.protocol.messages.membership import (
    PROTOCOL_VERSION,
    Heartbeat,
    Hello,
    MemberRole,
    StageProgress,
)


@attrs.frozen(kw_only=True)
class Equipment:
    """What only a worker has. It changes, so it is asked anew for each message."""

    compute: Compute
    stale_dropped: Callable[[], int]
    progress: Callable[[], tuple[StageProgress, ...]]


@attrs.frozen(kw_only=True)
class Identity:
    """`auth` and `family` as in Hello; addresses as others reach them."""

    node_id: NodeId
    role: MemberRole
    host: str
    pid: int
    auth: str = attrs.field(default="", repr=False)
    family: str = attrs.field(default="", repr=False)
    pipeline_addr: Endpoint | None = None
    store_addr: Endpoint | None = None
    log_lines_lost: Callable[[], int] = lambda: 0  # by this process so far
    equipment: Equipment | None = None

    def hello(self, term_seen: int) -> Hello:
        return Hello(
            node_id=self.node_id,
            role=self.role,
            version=PROTOCOL_VERSION,
            auth=self.auth,
            family=self.family,
            host=self.host,
            pid=self.pid,
            term_seen=term_seen,
            device=self.equipment.compute.offer() if self.equipment is not None else None,
            held=self.equipment.compute.held() if self.equipment is not None else (),
            pipeline_addr=self.pipeline_addr,
            store_addr=self.store_addr,
        )

    def heartbeat(self, generation: Generation) -> Heartbeat:
        equipment = self.equipment
        return Heartbeat(
            generation=generation,
            memory_free_bytes=equipment.compute.offer().memory_free_bytes if equipment is not None else 0,
            stale_dropped=equipment.stale_dropped() if equipment is not None else 0,
            progress=equipment.progress() if equipment is not None else (),
            log_lines_lost=self.log_lines_lost(),
        )
