"""What a number, a text or a list on the lanes may be at most: the ranges, where `codec` has the types.

Every field has a limit without anybody writing one: a plain integer is a count, a float is finite, a text and a list
end somewhere. The tables below say it more narrowly where what comes after is narrower: a column of int32, a header
field of 32 bits, a socket option, the name of a socket. Knows the messages, and neither bytes nor sockets.
"""

import math
import re
from collections.abc import Mapping, Sized
from typing import Any, Protocol

import attrs

from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import TERM_MAX, AskId, Attempt, Epoch, Generation, NodeId, RouteId, RowId, SessionId, StepId
from hydra.protocol.messages.generations import OWNER_LENGTH_MAX, Open
from hydra.protocol.messages.journal import REASON_MAX, AgedEntry, JournalEntries, JournalEntry, JournalRequest
from hydra.protocol.messages.membership import (
    Beacon,
    ChildExited,
    DeviceOffer,
    Heartbeat,
    Hello,
    KillWorker,
    SayHello,
    Welcome,
)
from hydra.protocol.messages.models import LoadModel, ReadyReply, UnloadModel
from hydra.protocol.messages.plans import Activate, LoadSlice
from hydra.protocol.model.cache_spec import PagedKvSpec
from hydra.protocol.model.decoder_spec import DecoderSpec
from hydra.protocol.model.layer_spec import MoeSpec, SoftmaxAttentionSpec
from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.model.source import Directory, HubCommit, Peers
from hydra.protocol.refusal import Refusal
from hydra.protocol.sampling import SamplingParams

INT32_MAX = (1 << 31) - 1
UINT32_MAX = (1 << 32) - 1
INT63_MAX = (1 << 63) - 1
COUNT_MAX = (1 << 53) - 1  # whatever has no limit of its own; JSON's numbers carry it, and sums of many stay exact
TEXT_MAX = 1 << 16
PATH_MAX = 4096
NAME_MAX = 255
REPLICAS_MAX = 64  # deployments of one model
AUTH_MAX = 4096
MODEL_LAYERS_MAX = 4096
ENDPOINTS_MAX = 256  # named as one source
ALTERNATIVES_MAX = 20  # to a token, with their log-probabilities
ADDRESS = re.compile(
    r"tcp://([A-Za-z0-9][A-Za-z0-9_.-]{0,254}|\[[0-9A-Fa-f:.%]{2,64}\]):[0-9]{1,5}|(mem|inproc)://[\w.:-]{1,255}"
)


class Limit(Protocol):
    """One field's limit. It is asked after the type was found right, and not about None."""

    def allows(self, value: Any) -> bool: ...


@attrs.frozen
class Range:
    """Numbers from `low` to `high`, both included; no float but a finite one is in any range."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)


@attrs.frozen
class Length:
    """Texts in characters, lists in items; `printable` keeps line ends out of logs and answers."""

    high: int
    low: int = 0
    printable: bool = False

    def allows(self, value: Sized) -> bool:
        shown = not self.printable or (isinstance(value, str) and value.isprintable())
        return self.low <= len(value) <= self.high and shown


@attrs.frozen
class SocketAddress:
    """What a socket takes without raising."""

    def allows(self, value: Any) -> bool:
        if ADDRESS.fullmatch(value) is None:
            return False
        return not value.startswith("tcp:") or int(value.rpartition(":")[2]) <= 65535


LARGEST = math.nextafter(math.inf, 0.0)
COUNT, FINITE, TEXT = Range(0, COUNT_MAX), Range(-LARGEST, LARGEST), Length(TEXT_MAX)
INT31, UINT32, INT63, TERM = Range(0, INT32_MAX), Range(0, UINT32_MAX), Range(0, INT63_MAX), Range(0, TERM_MAX)
SOME = Range(1, COUNT_MAX)
DELAY_S = Range(0.0, 1e6)
DURATION_S = Range(0.0, 1e9)
NAME, ADDR = Length(NAME_MAX, low=1, printable=True), SocketAddress()

PLAIN_LIMITS: Mapping[type, Limit] = {int: COUNT, float: FINITE, str: TEXT}
IDS: Mapping[Any, tuple[type, Limit]] = {
    SessionId: (int, INT31),  # these three travel in columns
    Attempt: (int, INT31),
    RowId: (int, INT31),
    RouteId: (int, UINT32),  # in the header of the data lane
    StepId: (int, INT63),
    Generation: (int, INT63),
    AskId: (int, INT63),
    NodeId: (str, NAME),
}
FIELDS: Mapping[type, Mapping[str, Limit]] = {
    Epoch: {"term": TERM, "number": UINT32},
    Hello: {
        "auth": Length(AUTH_MAX),
        "family": Length(NAME_MAX),
        "host": Length(NAME_MAX, printable=True),
        "pid": INT31,
        "term_seen": TERM,
        "held": Length(1024),
    },
    DeviceOffer: {
        "device": Length(NAME_MAX, printable=True),
        "name": Length(NAME_MAX, printable=True),
        "dtypes": Length(8),
    },
    Welcome: {"term": TERM, "heartbeat_s": Range(0.001, 3600.0)},
    SayHello: {"term": TERM},
    Beacon: {"term": TERM},
    Heartbeat: {"progress": Length(1024)},
    ChildExited: {"pid": INT31},
    KillWorker: {"pid": INT31},
    DecoderSpec: {"kinds": Length(MODEL_LAYERS_MAX, low=1), "layer_kinds": Length(MODEL_LAYERS_MAX, low=1)},
    SoftmaxAttentionSpec: {"n_heads": SOME, "n_kv_heads": SOME, "head_dim": SOME},  # these divide
    PagedKvSpec: {"n_heads": SOME, "head_dim": SOME},
    MoeSpec: {"n_experts": SOME, "top_k": SOME},
    Directory: {"path": Length(PATH_MAX)},
    StoredFile: {"identity": Length(NAME_MAX)},
    HubCommit: {"repo": Length(NAME_MAX), "commit": Length(NAME_MAX), "folder": Length(PATH_MAX)},
    Endpoint: {"addr": ADDR, "public_key": Length(NAME_MAX, printable=True)},
    Peers: {"endpoints": Length(ENDPOINTS_MAX)},
    LoadSlice: {
        "first_layer": Range(0, MODEL_LAYERS_MAX),
        "end_layer": Range(1, MODEL_LAYERS_MAX),
        "block_size": Range(1, 1 << 16),
    },
    Activate: {"kv_blocks": INT31, "credits": Range(1, 1 << 16)},  # credits bound a socket's queue
    LoadModel: {
        "model_path": Length(PATH_MAX),
        "model_id": Length(PATH_MAX),
        "dtype": Length(NAME_MAX),
        "replicas": Range(1, REPLICAS_MAX),
    },
    UnloadModel: {"model_id": Length(PATH_MAX)},
    ReadyReply: {"retry_after_s": DELAY_S},
    Refusal: {"retry_after_s": DELAY_S},
    Open: {
        "owner": Length(OWNER_LENGTH_MAX),
        "model_id": Length(PATH_MAX),
        "prompt_tokens": INT31,
        "max_tokens": INT31,
        "deaths": INT31,
    },
    JournalEntries: {"first": Range(1, COUNT_MAX), "entries": Length(1024)},
    AgedEntry: {"age_s": DURATION_S},
    JournalEntry: {
        "actor": Length(NAME_MAX, printable=True),
        "node": Length(NAME_MAX, printable=True),
        "model_id": Length(PATH_MAX),
        "response_id": Length(NAME_MAX, printable=True),
        "nodes": Length(MODEL_LAYERS_MAX),
        "reason": Length(REASON_MAX),
        "pid": INT31,
        "took_s": DURATION_S,
    },
    JournalRequest: {"session": Length(NAME_MAX), "node": Length(NAME_MAX)},
    SamplingParams: {"seed": Range(0, (1 << 64) - 1), "choice": INT31},
}
