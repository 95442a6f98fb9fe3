"""What each actor is called, and the addresses that everybody knows. Knows no machine behind a name."""

from hydra.protocol.ids import COORDINATOR, ActorName, Address, PeerId

MEMBER = ActorName("member")  # in every process
REGISTRY_NAME, PLANNER_NAME = ActorName("registry"), ActorName("planner")  # in the coordinator, with the next two
BROKER_NAME, STATUS_NAME = ActorName("broker"), ActorName("status")
JOURNAL_NAME = ActorName("journal")  # in every process
STAGE, SCOUT = ActorName("stage"), ActorName("scout")  # in a worker
SESSIONS, ASKS = ActorName("sessions"), ActorName("asks")  # in a frontend
PARENT = ActorName("parent")

REGISTRY = Address(COORDINATOR, REGISTRY_NAME)
PLANNER = Address(COORDINATOR, PLANNER_NAME)
BROKER = Address(COORDINATOR, BROKER_NAME)
STATUS = Address(COORDINATOR, STATUS_NAME)
JOURNAL = Address(COORDINATOR, JOURNAL_NAME)

PROBE_PEER = PeerId("(probe)")
"""Whose rows the Broker's own probes are: no process, and nobody on a wire may call itself so."""
