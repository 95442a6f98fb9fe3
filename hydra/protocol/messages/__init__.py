"""Every sentence the cluster can say on the command lane: one union that closes the list.

Grouped by conversation, one file each; SPEC.md says who may say what when, and a message without a sender or a handler
fails its test.

May import: model, ids, endpoint, refusal, sampling, sampled_token, batch.
Refuses to know: bytes, limits and lanes.
"""

from typing import TypeAlias

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

Message: TypeAlias = (
    Hello
    | Welcome
    | HelloRefused
    | SayHello
    | Expelled
    | Goodbye
    | Heartbeat
    | HeartbeatSeen
    | Beacon
    | ChildExited
    | KillWorker
    | LoadSlice
    | LoadProgress
    | SliceLoaded
    | LoadFailed
    | Activate
    | Ready
    | Fenced
    | DropSlice
    | RouteBroken
    | Dial
    | Dialled
    | ReachReport
    | LoadModel
    | UnloadModel
    | Rebalance
    | ModelReply
    | JobsRequest
    | CancelJob
    | JobsReply
    | ModelsChanged
    | StatusRequest
    | StatusReply
    | ReadyRequest
    | ReadyReply
    | Open
    | OpenRefused
    | Reopen
    | Tokens
    | Close
    | JournalEntries
    | JournalRequest
    | JournalReply
)
