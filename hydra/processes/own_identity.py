"""What this process is called, and what it says of itself to the coordinator. Knows no actor but the member."""

import os
import secrets
import socket

from hydra.actors.core.identity import Identity
from hydra.actors.families.lifeline import FAMILY_ENV
from hydra.log.set_up import log_lines_lost
from hydra.protocol.ids import NodeId, PeerId
from hydra.protocol.messages.membership import MemberRole


def new_peer_id(node_id: str) -> PeerId:
    """On the command lane: no other life of the same node has it."""
    return PeerId(f"{node_id}~{secrets.token_hex(6)}")


def own_identity(role: MemberRole, node_id: str, join_token: str) -> Identity:
    return Identity(
        node_id=NodeId(node_id),
        role=role,
        host=socket.gethostname(),
        pid=os.getpid(),
        auth=join_token,
        family=os.environ.get(FAMILY_ENV, ""),
        log_lines_lost=log_lines_lost,
    )
