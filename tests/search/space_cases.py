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
    """Return the least of all ways to write a graph down, or None if it is invalid.

    Where an ensemble is judged, the target may change its name like all others, unless a slow copy
    follows it.
    """
    auxiliaries = [f"aux{number}" for number in range(1, space.nodes)]
    models = {"target": space.target_model, **{n: params[f"model/{n}"] for n in auxiliaries}}
    roles = {name: params.get(f"role/{name}", space.kinds[0]) for name in auxiliaries}
    slow = {name for name, role in roles.items() if role == "ema"}
    models |= dict.fromkeys(slow, "ema")
    frozen = {name for name, role in roles.items() if role != "learns"}
    edges = {}
    for name, gate in params.items():
        kind, _, pair = name.partition("/")
        source, _, node = pair.partition("->")
        if kind == "gate" and gate != "cutoff" and node not in frozen:
            gate = "through" if (source, gate) == ("label", "correct") else gate
            edges[source, node] = (gate, params.get(f"loss/{pair}"))
    learning = {node for _, node in edges}
    judged = {"target": {"target"}, "ensemble": learning, "ensemble-all": {*models}}
    alone = space.objective == "target"
    reached = set(judged[space.objective])
    if not alone and (len(reached) < 2 or space.target_model not in {models[n] for n in learning}):
        return None
    for _ in auxiliaries:
        reached |= {source for source, node in edges if node in reached and source != "label"}
    edges = {pair: gate for pair, gate in edges.items() if pair[1] in reached}
    followed = alone or bool(slow & reached)
    if followed and "target" not in learning:
        return None
    kept = [name for name in models if name in reached]
    forms = []
    for order in permutations(kept[followed:]):
        new = {"label": "label", "target": "target"}
        new |= {name: f"aux{place}" for place, name in enumerate(order)}
        renamed = ((new[source], new[node], gate) for (source, node), gate in edges.items())
        forms.append((tuple(models[name] for name in order), tuple(sorted(renamed))))
    return min(forms)
