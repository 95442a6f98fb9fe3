"""Nodes in groups of about equal memory, one group for each deployment of a model. Knows no layer and no plan."""

from collections.abc import Collection, Mapping

from hydra.actors.core.facts import NodeJoined
from hydra.protocol.ids import NodeId


def group_of(
    nodes: Mapping[NodeId, NodeJoined], n_groups: int, held_by: Collection[NodeId]
) -> dict[NodeId, NodeJoined]:
    """One of `n_groups` groups, in join order: the one with most of `held_by`, which hold layers already.

    The largest node that is left goes to the group with the least memory (longest processing time first; Graham 1969):
    no group then has more than 4/3 of what the best partition would give its largest.
    """
    groups: list[list[NodeId]] = [[] for _ in range(n_groups)]
    memory_bytes = [0] * n_groups
    for name in sorted(nodes, key=lambda name: -nodes[name].offer.memory_total_bytes):
        least = memory_bytes.index(min(memory_bytes))
        groups[least].append(name)
        memory_bytes[least] += nodes[name].offer.memory_total_bytes
    own = max(groups, key=lambda group: len(set(group).intersection(held_by)))
    return {name: node for name, node in nodes.items() if name in own}
