"""What can go wrong with bytes between processes, whatever carries them: the bottom of every lane's exceptions.

Promises: one class per kind of fault, so that a receiver drops what it must and a sender learns what it did. What only
a transport can meet (a full queue, a peer that is gone) is in `wires.wire`. Refuses to know codecs and sockets.
"""


class WireError(Exception):
    """A fault of the world on a wire."""


class MessageTooBig(WireError):
    """Our own message is beyond the limits of its lane or of its fields; nothing was sent."""


class TheyBrokeTheRules(WireError):
    """What arrived is not a sentence of the protocol. Nothing of it was used."""
