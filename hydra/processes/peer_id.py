"""What a process calls itself on the command lane. Knows no role."""

import secrets

from hydra.protocol.ids import PeerId


def new_peer_id(node_id: str) -> PeerId:
    """No other life of the same node has it."""
    return PeerId(f"{node_id}~{secrets.token_hex(6)}")
