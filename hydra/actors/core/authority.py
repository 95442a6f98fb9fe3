"""Who may say what: for every message the speakers it is taken from. What it says of others is checked by its reader.

A speaker is what the connection's peer is to this process: its coordinator, a member that greeted in one of the roles,
or a stranger, who has no generation from this life of the coordinator. Knows no actor and no socket. A message between
actors of one process does not come by here.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from hydra.actors.core.names import PROBE_PEER
from hydra.protocol.ids import COORDINATOR, PeerId
from hydra.protocol.messages.generations import Close, Open, OpenRefused, Reopen, Tokens
from hydra.protocol.messages.journal import JournalEntries, JournalReply, JournalRequest
from hydra.protocol.messages.membership import (
    Beacon,
    ChildExited,
    Expelled,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Hello,
    HelloRefused,
    KillWorker,
    MemberRole,
    SayHello,
    Welcome,
)
from hydra.protocol.messages.models import (
    CancelJob,
    JobsReply,
    JobsRequest,
    LoadModel,
    ModelReply,
    ModelsChanged,
    ReadyReply,
    ReadyRequest,
    Rebalance,
    StatusReply,
    StatusRequest,
    UnloadModel,
)
from hydra.protocol.messages.plans import (
    Activate,
    Dial,
    Dialled,
    DropSlice,
    Fenced,
    LoadFailed,
    LoadProgress,
    LoadSlice,
    ReachReport,
    Ready,
    RouteBroken,
    SliceLoaded,
)

Speaker: TypeAlias = MemberRole | Literal["coordinator", "stranger", "impostor"]

MEMBERS: frozenset[Speaker] = frozenset({"worker", "frontend", "parent"})
ANYBODY: frozenset[Speaker] = MEMBERS | {"stranger"}  # a stranger's beat is answered with SayHello, nothing else
WORKER: frozenset[Speaker] = frozenset({"worker"})
FRONTEND: frozenset[Speaker] = frozenset({"frontend"})
PARENT: frozenset[Speaker] = frozenset({"parent"})
THE_COORDINATOR: frozenset[Speaker] = frozenset({"coordinator"})

SPEAKERS: Mapping[type, frozenset[Speaker]] = {
    **dict.fromkeys((Hello, Heartbeat, Goodbye), ANYBODY),
    **dict.fromkeys((LoadProgress, SliceLoaded, LoadFailed, Ready, Fenced, RouteBroken, Dialled), WORKER),
    **dict.fromkeys((LoadModel, UnloadModel, Rebalance, JobsRequest, CancelJob, StatusRequest, ReadyRequest), FRONTEND),
    **dict.fromkeys((Open, Close, JournalRequest), FRONTEND),
    JournalEntries: MEMBERS,
    **dict.fromkeys((ChildExited,), PARENT),
    **dict.fromkeys((Welcome, HelloRefused, SayHello, Expelled, HeartbeatSeen, Beacon, ReachReport), THE_COORDINATOR),
    **dict.fromkeys((KillWorker, LoadSlice, Activate, DropSlice, Dial), THE_COORDINATOR),
    **dict.fromkeys((ModelReply, JobsReply, ModelsChanged, StatusReply, ReadyReply, JournalReply), THE_COORDINATOR),
    **dict.fromkeys((OpenRefused, Reopen, Tokens), THE_COORDINATOR),
}


def speaker_of(peer: PeerId, role: MemberRole | None) -> Speaker:
    """What a peer of the coordinator is; `role` is the one it was let in with, None: it has no generation.

    Whoever connects under a name that only this process itself uses is not heard at all: an answer would stay in here.
    """
    if peer in (COORDINATOR, PROBE_PEER):
        return "impostor"
    return role or "stranger"


def may_say(speaker: Speaker, kind: type) -> bool:
    return speaker in SPEAKERS.get(kind, ())
