"""The route of a bench that has only one, in its only epoch."""

from hydra.protocol.ids import Epoch, RouteId

LONE_ROUTE, LONE_EPOCH = RouteId(1), Epoch(1, 1)
LONE_BLOCK_SIZE = 16
