"""All draws of a search space, and a reference for equal graphs that tries every renaming."""

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

from timm_ktg.search.space import SearchSpace

PAPER = ("through", "cutoff", "linear", "correct")
Params = dict[str, Any]


def every(space: SearchSpace) -> Iterator[Params]:
    names = list(space.choices())
    for values in product(*space.choices().values()):
        yield dict(zip(names, values, strict=True))


def least_form(space: SearchSpace, params: Params) -> Any:
    """Return the least of all ways to write a graph down, or None if it is invalid."""
    auxiliaries = [f"aux{number}" for number in range(1, space.nodes)]
    frozen = {name for name in auxiliaries if params.get(f"role/{name}") == "frozen"}
    edges = {}
    for name, gate in params.items():
        kind, _, pair = name.partition("/")
        source, _, node = pair.partition("->")
        if kind == "gate" and gate != "cutoff" and node not in frozen:
            gate = "through" if (source, gate) == ("label", "correct") else gate
            edges[source, node] = (gate, params.get(f"loss/{pair}"))
    reached = {"target"}
    for _ in auxiliaries:
        reached |= {source for source, node in edges if node in reached and source != "label"}
    edges = {pair: gate for pair, gate in edges.items() if pair[1] in reached}
    if not any(node == "target" for _, node in edges):
        return None
    kept = [name for name in auxiliaries if name in reached]
    forms = []
    for order in permutations(kept):
        new = {"label": "label", "target": "target"}
        new |= {name: f"aux{place}" for place, name in enumerate(order)}
        models = tuple(params[f"model/{name}"] for name in order)
        renamed = ((new[source], new[node], gate) for (source, node), gate in edges.items())
        forms.append((models, tuple(sorted(renamed))))
    return min(forms)
