"""The bare graph: names and pairs of names, before any model is built."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ..errors import did_you_mean

LABEL = "label"

Pair = tuple[str, str]


def edge_problems(nodes: Collection[str], edges: Iterable[Pair]) -> list[tuple[Pair, str]]:
    """Return the edges that cannot be, each with the reason.

    Args:
        nodes: Names of the networks.
        edges: (source, destination); the source may be `label`, the destination may not.
    """
    problems, seen = [], set[Pair]()
    names = ", ".join(sorted(nodes))
    for edge in edges:
        source, destination = edge
        if edge in seen:
            problems.append((edge, "the edge is there twice."))
        elif source == destination:
            problems.append((edge, f"`{source}` cannot learn from itself."))
        elif destination == LABEL:
            problems.append((edge, f"`{LABEL}` cannot learn."))
        else:
            unknown = [end for end in edge if end not in nodes and end != LABEL]
            problems += [
                (edge, f"`{end}` is no node. Nodes: {names}.{did_you_mean(end, [*nodes, LABEL])}")
                for end in unknown
            ]
        seen.add(edge)
    return problems


def name_problem(name: str) -> str | None:
    """Say why `name` cannot be the name of a node, if it cannot."""
    if name == LABEL:
        return f"`{LABEL}` is the label's own name; a node should be called something else."
    if not (name.isidentifier() and name[0].isalpha()):
        return f"a node's name should be a letter, then letters, digits and `_`. Found `{name}`."
    return None


def target_problem(nodes: Collection[str], edges: Iterable[Pair], target: str) -> str | None:
    """Say why `target` cannot be the target, if it cannot. Edges that are cut off do not count."""
    if target not in nodes:
        return f"`{target}` is no node. Nodes: {', '.join(nodes)}.{did_you_mean(target, nodes)}"
    if all(destination != target for _, destination in edges):
        return f"the target `{target}` should learn from something. It has no incoming edge."
    return None


def nodes_that_matter(edges: Sequence[Pair], target: str, keep: Collection[str] = ()) -> set[str]:
    """Return the nodes with a path to the target, or to one that is kept, and those themselves."""
    matter = {target, *keep}
    while True:
        sources = {source for source, destination in edges if destination in matter} - {LABEL}
        if sources <= matter:
            return matter
        matter |= sources
