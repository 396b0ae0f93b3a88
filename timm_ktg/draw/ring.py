"""The order of the nodes on the ellipse, where some are made from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from ..graph.topology import Pair

_APART = 100  # cost of members that are not neighbors; more than all lines together


def ring_of(
    names: Sequence[str], ensembles: Mapping[str, Sequence[str]], pairs: Sequence[Pair]
) -> list[str]:
    """Return the nodes in their order on the ellipse: the first stays, others trade places.

    The members of an ensemble become neighbors, so that a region around them holds no other node,
    and what belongs together comes close. Two nodes trade places as long as that lowers the cost.

    Args:
        names: The nodes.
        ensembles: Members of every ensemble, by its name.
        pairs: Nodes that a line joins.
    """
    best = list(names)
    while True:
        orders = [_traded(best, *places) for places in combinations(range(1, len(best)), 2)]
        better = min([best, *orders], key=lambda order: _cost(order, ensembles, pairs))
        if better is best:  # min returns the first of equals
            return best
        best = better


def _traded(order: Sequence[str], one: int, other: int) -> list[str]:
    traded = list(order)
    traded[one], traded[other] = order[other], order[one]
    return traded


def _cost(
    order: Sequence[str], ensembles: Mapping[str, Sequence[str]], pairs: Sequence[Pair]
) -> int:
    """Return the steps along the ring that all lines need, plus the cost of members apart."""
    place = {name: index for index, name in enumerate(order)}
    ties = [(member, name) for name, members in ensembles.items() for member in members]
    cost = 0
    for one, other in (*pairs, *ties):
        steps = abs(place[one] - place[other])
        cost += min(steps, len(order) - steps)
    for members in ensembles.values():
        neighbors = zip(order, [*order[1:], order[0]], strict=True)
        together = sum(one in members and other in members for one, other in neighbors)
        cost += _APART * max(0, len(members) - 1 - together)
    return cost
