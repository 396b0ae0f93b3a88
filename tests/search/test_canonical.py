"""The canonical form of graphs with nodes that nothing tells apart."""

import random
from collections.abc import Iterator
from hashlib import sha256

import pytest

from timm_ktg.graph.topology import EMA
from timm_ktg.recipe.search_config import Objective
from timm_ktg.search import canonical
from timm_ktg.search.canonical import (
    CanonicalGraph,
    all_through,
    node_names,
    possible_edges,
    valid_form,
)

OBJECTIVES: tuple[Objective, ...] = ("target", "ensemble", "ensemble-all")
GATES = (("through",), ("through", "linear"), ("through kl_div", "correct dkd T=4", "linear"))
# Made when every order of every color was tried.
DIGEST = "885c69caa91e92db683e02b1b313c07f39e35ee931eedcd9a35f8b6fdc25380c"


def graphs(count: int) -> Iterator[CanonicalGraph | None]:
    """Random graphs of 2 to 6 nodes: of few or many edges, with frozen nodes and slow copies."""
    rng = random.Random(0)
    for _ in range(count):
        names = node_names(rng.choice((2, 3, 4, 5, 6)))
        models = {name: rng.choice(("t", "a", "a", EMA)) for name in names} | {"target": "t"}
        frozen = {name for name in names[1:] if models[name] == EMA or rng.random() < 0.2}
        kinds, share = rng.choice(GATES), rng.choice((1.0, 0.8, 0.4))
        pairs = [pair for pair in possible_edges(names) if pair[1] not in frozen]
        gates = {pair: rng.choice(kinds) for pair in pairs if rng.random() < share}
        yield valid_form(models, gates, rng.choice(OBJECTIVES))


def test_keys_stay_as_studies_hold_them() -> None:
    keys = [graph.key if graph else "" for graph in graphs(2000)]
    keys += [all_through("a", ["a"] * others).key for others in range(8)]
    assert len({*keys}) > 1500
    assert sha256(" ".join(keys).encode()).hexdigest() == DIGEST


def test_orders_that_are_skipped_give_no_other_form(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(graphs(500))
    monkeypatch.setattr(canonical, "_alike", lambda *_: False)  # every order is tried
    assert list(graphs(500)) == found


def test_nodes_are_alike_if_exchanging_them_leaves_the_graph_as_it_is() -> None:
    gates = dict.fromkeys(possible_edges(node_names(5)), "through")
    names = node_names(5)[1:]
    assert canonical._twins(names, gates) == [names]
    gates["aux1", "aux2"] = gates["aux2", "aux1"] = "linear"
    assert canonical._twins(names, gates) == [("aux1", "aux2"), ("aux3", "aux4")]
    del gates["aux3", "aux4"]
    assert canonical._twins(names, gates) == [("aux1", "aux2"), ("aux3",), ("aux4",)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_twenty_equal_networks_have_a_form(objective: Objective) -> None:
    graph = all_through("a", ["a"] * 19, objective)  # of 19! orders, which nobody could try
    assert len(graph.nodes) == 20 and len(graph.edges) == 20 * 20
