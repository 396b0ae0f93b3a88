"""The search space, and canonical graphs against a reference that tries every renaming."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

from tests.search.space_cases import PAPER, Params, every, least_form
from timm_ktg.recipe.recipe import load_recipe, save_recipe
from timm_ktg.recipe.search_config import Kind, Objective, SearchRecipe, kinds_of
from timm_ktg.search.canonical import CanonicalGraph, all_through, distillation
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.space import SearchSpace, build_choices, canonical, controls, params_of

LOSSES = ("kl_div", "dkd T=4")


def space_of(
    nodes: int, models: str = "ab", gates: tuple[str, ...] = PAPER, frozen: bool = False
) -> SearchSpace:
    return SearchSpace("t", tuple(models), gates, nodes, kinds_of(frozen))


def together(space: SearchSpace, objective: Objective = "ensemble") -> SearchSpace:
    """The same space, where an ensemble is judged."""
    return replace(space, objective=objective)


def of_kinds(space: SearchSpace, *kinds: Kind) -> SearchSpace:
    """The same space, with these kinds of auxiliaries."""
    return replace(space, kinds=kinds)


def draw(space: SearchSpace, rng: random.Random, cut: float = 0.0) -> Params:
    """Uniform parameters, but with more edges cut off."""
    params = {name: rng.choice(categories) for name, categories in space.choices().items()}
    gates = [name for name in params if name.startswith("gate/")]
    return params | {name: "cutoff" for name in gates if rng.random() < cut}


def drawn(space: SearchSpace, *edges: str, **models: str) -> Params:
    """Parameters of the graph with these edges, `source->destination[:gate]`, and no others."""
    params = {name: "cutoff" if "->" in name else of[0] for name, of in space.choices().items()}
    params |= {f"model/{name}": model for name, model in models.items()}
    for edge in edges:
        pair, _, gate = edge.partition(":")
        params[f"gate/{pair}"] = gate or "through"
    return params


def form(space: SearchSpace, *edges: str, **models: str) -> CanonicalGraph:
    graph = canonical(space, drawn(space, *edges, **models))
    assert graph is not None
    return graph


def renamed(space: SearchSpace, params: Params, order: Sequence[str]) -> Params:
    """The same graph, its auxiliaries under other names."""
    new = dict(zip(space.auxiliaries, order, strict=True))
    result = {}
    for name, category in params.items():
        kind, rest = name.split("/")
        result[f"{kind}/{'->'.join(new.get(end, end) for end in rest.split('->'))}"] = category
    return result


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (space_of(1, ""), 4),
        (space_of(2, "abc"), 3 * 4**4),
        (space_of(2, "abc", frozen=True), 3 * 2 * 4**4),
        (space_of(3, "ab", PAPER[:2], frozen=True), 2**2 * 2**2 * 2**9),
        (space_of(3, "a", PAPER[:3]), 3**9),
        (replace(space_of(2, "ab"), losses=LOSSES, label_losses=LOSSES), 2 * 4**4 * 2**4),
    ],
)
def test_size_is_the_number_of_draws(space: SearchSpace, size: int) -> None:
    assert space.size == size == sum(1 for _ in every(space))


def test_choices_are_named_and_ordered() -> None:
    choices = space_of(3, frozen=True).choices()
    assert " ".join(choices).replace("gate/", "") == (
        "model/aux1 model/aux2 role/aux1 role/aux2 label->target aux1->target aux2->target "
        "label->aux1 target->aux1 aux2->aux1 label->aux2 target->aux2 aux1->aux2"
    )
    assert list(choices.values()) == [("a", "b")] * 2 + [("learns", "frozen")] * 2 + [PAPER] * 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gates": ("cutoff",)}, "gates should name one besides `cutoff`"),
        ({"models": ("a", "b", "a")}, "models should name each only once. Found a, b, a."),
        ({"gates": ("linear", "linear")}, "gates should name each only once."),
    ],
)
def test_space_that_nothing_can_be_drawn_from_is_refused(change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(space_of(2), **change)


@pytest.mark.parametrize(
    ("space", "forms"),
    [
        # By hand: 1 without aux1 -> target; with it, each other edge is there or not.
        (space_of(2, "a", ("cutoff", "through")), 1 + 2**3),
        # 2 without aux1 -> target; with it, 3 gates there, 3 a label edge, 4 target -> aux1.
        (space_of(2, "abc"), 2 + 3 * (3 * 3 * 3 * 4)),
        (space_of(2, "abc", frozen=True), 326),  # the role adds nothing that cutoff cannot do
        (space_of(2, "a", ("correct", "linear"), True), 2**4 + 2**2),  # here it does
        # Two that learn (Burnside, 2^6 with 2^3 fixed by the swap), one of them, none.
        (space_of(3, "a", ("through", "correct"), True), (2**6 + 2**3) // 2 + 2**4 + 3),
        # No auxiliary, one, two of unlike models, two alike (of 2^8, 2^4 fixed by the swap).
        (space_of(3, "ab", ("cutoff", "linear")), 1 + 2 * 2**3 + 2**8 + (2**8 + 2**4)),
        (space_of(3, "ab", ("cutoff", "linear"), True), 545),
        # 1 without aux1 -> target; with it, two losses there, and none or two from target.
        (replace(space_of(2, "a", ("cutoff", "through")), losses=LOSSES), 1 + 2**3 * 3),
        # The same with two losses of each edge from the label.
        (
            replace(
                space_of(2, "a", ("cutoff", "correct")),
                losses=LOSSES,
                label_losses=("bce", "cross_entropy"),
            ),
            2 + 3 * 2 * 3 * 3,
        ),
        # Each of two networks learns from the label, the other, or both (Burnside, if alike).
        (together(space_of(2, "a", ("cutoff", "through"))), 3 * 3),
        (together(space_of(2, "t", ("cutoff", "through"))), (3**2 + 3) // 2),
        # Three that learn; or two, with a third that is frozen or not there.
        (
            together(space_of(3, "t", ("cutoff", "through"))),
            (7**3 + 3 * 7 * 3 + 2 * 7) // 6 + (7**2 + 7) // 2,
        ),
        # The same but for the role, which adds nothing that cutoff cannot do.
        (
            together(space_of(3, "t", ("cutoff", "through"), True)),
            (7**3 + 3 * 7 * 3 + 2 * 7) // 6 + (7**2 + 7) // 2,
        ),
        # Three that learn, two of them alike or not; or the target and another one, with a third
        # that is not there, or frozen and of either model.
        (
            together(space_of(3, "ab", ("cutoff", "linear"))),
            2 * (7**3 + 3 * 7) // 2 + 7**3 + 2 * (3**2 + 2 * (7**2 - 3**2)),
        ),
        # Both learn, or one of them while the other is frozen.
        (together(space_of(2, "t", ("cutoff", "through")), "ensemble-all"), (3**2 + 3) // 2 + 3),
        (together(space_of(2, "a", ("cutoff", "through")), "ensemble-all"), 3 * 4),
        # As without slow copies; and one that teaches, whose model is no choice, by each gate.
        (
            of_kinds(space_of(2, "ab", ("cutoff", "through")), "learns", "ema"),
            1 + 2 * 2**3 + 2,
        ),
        (of_kinds(space_of(2, "ab", PAPER), "frozen", "ema"), 2 + 3 * 3 * (2 + 1)),
        # Two that learn, of which the slow copy follows one, and teaches it or the other.
        (
            of_kinds(together(space_of(3, "t", ("cutoff", "through"))), "learns", "ema"),
            (7**3 + 3 * 7 * 3 + 2 * 7) // 6 + (7**2 + 7) // 2 + (7**2 - 3**2),
        ),
        (
            of_kinds(
                together(space_of(2, "t", ("cutoff", "through")), "ensemble-all"), "learns", "ema"
            ),
            (3**2 + 3) // 2 + 3 + 3,
        ),
    ],
)
def test_canonical_graphs_are_the_classes_of_the_space(space: SearchSpace, forms: int) -> None:
    graphs, numbers = {}, {}
    for params in every(space):
        graph, number = canonical(space, params), least_form(space, params)
        assert (graph is None) == (number is None)
        if graph is not None:
            assert canonical(space, params_of(space, graph)) == graph
            assert graphs.setdefault(number, graph) == graph
            assert numbers.setdefault(graph.key, number) == number
    assert len(graphs) == len(numbers) == forms


@pytest.mark.parametrize("nodes", [4, 5])
def test_canonical_graphs_of_random_draws_are_their_classes(nodes: int) -> None:
    space = space_of(nodes, "a", ("through", "cutoff"))
    rng = random.Random(0)
    draws = [draw(space, rng, cut=0.2) for _ in range(400)]
    for params in draws[:100]:
        draws.append(renamed(space, params, rng.sample(space.auxiliaries, nodes - 1)))
    graphs = [(canonical(space, params), least_form(space, params)) for params in draws]
    keys, numbers = zip(*((graph and graph.key, number) for graph, number in graphs), strict=True)
    assert len(set(graphs)) == len(set(keys)) == len(set(numbers)) > 100


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("nodes", "cut"), [(2, 0.0), (5, 0.0), (5, 0.5), (6, 0.7), (7, 0.5)])
def test_canonical_is_idempotent_and_blind_to_names(nodes: int, cut: float, frozen: bool) -> None:
    space = space_of(nodes, "abc", (*PAPER, "confident(threshold=0.9)"), frozen)
    rng = random.Random(nodes)
    for _ in range(40):
        params = draw(space, rng, cut)
        graph = canonical(space, params)
        order = rng.sample(space.auxiliaries, nodes - 1)
        assert canonical(space, renamed(space, params, order)) == graph
        if graph is not None:
            assert canonical(space, params_of(space, graph)) == graph
            assert list(params_of(space, graph)) == list(space.choices())


def test_canonical_tells_a_ring_of_six_from_two_of_three() -> None:
    """Every node of both has the same neighborhood, so only permutations can tell them apart."""
    space = space_of(7, "a")
    graphs = []
    for rings in ([(1, 2, 3, 4, 5, 6)], [(1, 2, 3), (4, 5, 6)]):
        pairs = [pair for ring in rings for pair in zip(ring, ring[1:] + ring[:1], strict=True)]
        params = {name: "through" if "->" in name else "a" for name in space.choices()}
        params |= {f"gate/aux{source}->aux{destination}": "linear" for source, destination in pairs}
        orders = islice(permutations(space.auxiliaries), 0, None, 37)
        forms = {canonical(space, renamed(space, params, order)) for order in orders}
        assert len(forms) == 1
        graphs += forms
    assert graphs[0] != graphs[1]


@pytest.mark.parametrize("objective", ["ensemble", "ensemble-all"])
def test_first_network_is_one_of_its_model_where_an_ensemble_is_judged(
    objective: Objective,
) -> None:
    space = together(space_of(4, "tab", ("through", "cutoff", "linear"), True), objective)
    rng, found = random.Random(0), []
    for _ in range(300):
        params = draw(space, rng, cut=0.3) | {"model/aux2": "t", "role/aux2": "learns"}
        swap = {"target": "aux2", "aux2": "target"}
        swapped = params | {
            f"gate/{swap.get(source, source)}->{swap.get(node, node)}": params[
                f"gate/{source}->{node}"
            ]
            for source, node in space.pairs
        }
        graph = canonical(space, params)
        assert canonical(space, swapped) == graph
        found.append(graph)
        if graph is not None:
            assert graph.models["target"] == "t" and "target" in graph.learning_nodes
            assert canonical(space, params_of(space, graph)) == graph
    assert len({graph.key for graph in found if graph}) > 200


def test_every_network_that_learns_matters_where_an_ensemble_is_judged() -> None:
    space = space_of(3, "a")
    edges = ("label->target", "label->aux1", "aux2->aux1")
    assert form(space, *edges) == form(space, "label->target")
    graph = form(together(space), *edges)
    assert graph.members == ("target", "aux2") and graph.frozen_nodes == ("aux1",)
    assert str(graph).endswith("; ensemble of target, aux2") and graph.judged == "ensemble"
    assert form(together(space, "ensemble-all"), *edges).members == ("target", "aux1", "aux2")
    assert form(space, *edges[:2]).key != form(together(space), *edges[:2]).key


@pytest.mark.parametrize("objective", ["ensemble", "ensemble-all"])
def test_ensemble_of_one_and_one_without_the_targets_model_are_none(objective: Objective) -> None:
    space = together(space_of(3, "a", frozen=True), objective)
    assert canonical(space, drawn(space, "label->aux1", "label->aux2", "target->aux1")) is None
    alone = canonical(space, drawn(space, "label->target"))
    assert (alone is None) == (objective == "ensemble")  # the others are frozen members


def test_auxiliaries_are_named_in_order_of_their_models() -> None:
    edges = ("aux1->target:linear", "label->aux1", "aux2->target", "label->aux2:linear")
    graph = form(space_of(3), *edges, aux1="b", aux2="a")
    nodes = [" ".join(node) for node in graph.nodes]
    assert nodes == ["target t learns", "aux1 a learns", "aux2 b learns"]
    assert [" ".join(edge) for edge in graph.edges] == [
        "aux1 target through",
        "aux2 target linear",
        "label aux1 linear",
        "label aux2 through",
    ]


def test_key_is_the_same_in_every_process() -> None:
    assert form(space_of(3), "label->target", "aux1->target:linear").key == "029d43f8e3644822"


@pytest.mark.parametrize("edges", [(), ("label->aux1",), ("label->aux1", "target->aux1")])
def test_target_without_incoming_edge_is_none(edges: tuple[str, ...]) -> None:
    assert canonical(space_of(2), drawn(space_of(2), *edges)) is None


@pytest.mark.parametrize(
    "dead",  # the last: a cycle that the target feeds
    ["label->aux1", "target->aux1 label->aux1", "target->aux1 aux1->aux2 aux2->aux1"],
)
def test_nodes_that_cannot_reach_the_target_are_dropped(dead: str) -> None:
    space = space_of(4)
    graph = form(space, "label->target", "aux3->target", *dead.split(), aux3="b")
    assert graph == distillation("t", "b")
    assert [(node.name, node.model) for node in graph.nodes] == [("target", "t"), ("aux1", "b")]


def test_correct_is_through_on_label_edges_alone() -> None:
    space = space_of(2)
    graph = form(space, "label->target:correct", "aux1->target:correct", "label->aux1:correct")
    assert [edge.gate for edge in graph.edges] == ["through", "correct", "through"]


def test_auxiliary_without_incoming_edges_is_frozen_whatever_its_role() -> None:
    space = space_of(2, frozen=True)
    edges = ("label->target", "aux1->target:linear")
    cut, told = drawn(space, *edges), drawn(space, *edges, "label->aux1", "target->aux1")
    told["role/aux1"] = "frozen"
    graph = canonical(space, cut)
    assert graph is not None and canonical(space, told) == graph
    assert [(node.name, node.role) for node in graph.nodes] == [
        ("target", "learns"),
        ("aux1", "frozen"),
    ]
    assert graph.frozen_nodes == ("aux1",)


def test_frozen_auxiliaries_are_rare_unless_a_choice() -> None:
    for frozen, share in ((False, 12 / 240), (True, 204 / 480)):  # 5.0 %; 42.5 %
        space = space_of(2, "a", frozen=frozen)
        graphs = [graph for params in every(space) if (graph := canonical(space, params))]
        assert sum(bool(graph.frozen_nodes) for graph in graphs) / len(graphs) == share
    draws = [list(params.values())[-2:] for params in every(space_of(2, "a"))]  # aux1's two gates
    assert draws.count(["cutoff"] * 2) / len(draws) == 0.0625  # also where it teaches nobody


def test_controls_are_what_they_say() -> None:
    space = space_of(3)
    everything = dict.fromkeys(space.choices(), "through")
    assert controls(space) == [
        form(space, "label->target"),
        form(space, "label->target", "aux2->target", aux2="a"),
        form(space, "label->target", "aux2->target", aux2="b"),
        canonical(space, everything | {"model/aux1": "b", "model/aux2": "a"}),
    ]
    assert controls(space_of(1)) == [form(space_of(1), "label->target")]
    large = space_of(5)
    assert all(canonical(large, params_of(large, graph)) == graph for graph in controls(large))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (space_of(1), "the graph has 2 nodes, but the space 1."),
        (space_of(2, "bc"), "model/aux1: should be one of b, c. Found `a`."),
        (space_of(2, "a", ("linear", "cutoff")), "gate/label->target: .* Found `through`."),
        (space_of(2, "a", ("through",)), "gate/label->aux1: .* Found `cutoff`."),
        (space_of(3, "a", ("through",), True), "gate/aux2->target: .* Found `cutoff`."),
        (SearchSpace("u", ("a",), PAPER, 2), "target: should be one of u. Found `t`."),
    ],
)
def test_params_of_names_what_the_space_lacks(space: SearchSpace, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        params_of(space, distillation("t", "a"))


def test_params_of_a_graph_that_is_judged_otherwise_are_refused() -> None:
    space = together(space_of(3, "a"), "ensemble-all")
    with pytest.raises(ValueError, match="the graph is judged by target, not ensemble-all."):
        params_of(space, distillation("t", "a"))
    with pytest.raises(ValueError, match="the graph should have all 3 nodes. Found 2."):
        params_of(space, all_through("t", ["a"], "ensemble-all"))


def test_graph_is_written_as_a_recipe(tmp_path: Path) -> None:
    weights = tmp_path / "wrn.safetensors"
    weights.touch()
    resnet, wrn = "resnet8_cifar", "wrn16_2_cifar"
    slow = {"gate": "breaking", "gate_kwargs": {"factor": 2.0}}
    search = {"nodes": 3, "target_model": resnet, "models": [resnet, wrn], "gates": [*PAPER, slow]}
    recipe = SearchRecipe.model_validate({"search": search, "data": {"holdout": 9}})
    space = build_choices(recipe.search).largest
    edges = ("label->target:correct", *(f"aux{i}->target:breaking(factor=2.0)" for i in (1, 2)))
    graph = form(space, *edges, "label->aux1:linear", aux1=resnet, aux2=wrn)
    builder = RecipeBuilder(recipe, lambda teacher: weights, seed=0)
    save_recipe(builder.recipe_of(graph), tmp_path / "r.yaml")
    text = (tmp_path / "r.yaml").read_text()
    assert "&" not in text  # no anchors for the gate that is there twice
    found = load_recipe(str(tmp_path / "r.yaml")).graph.nodes
    assert {name: edge.gate for name, edge in found["target"].learns_from.items()} == {
        **{"label": "through", "aux1": "breaking", "aux2": "breaking"}
    }
    assert found["target"].learns_from["aux2"].gate_kwargs == {"factor": 2.0}
    assert found["aux1"].learns_from["label"].gate == "linear"
    assert (found["aux2"].model, found["aux2"].checkpoint_path) == (wrn, str(weights))


def test_frozen_teacher_is_no_part_of_a_space_without_one() -> None:
    space = of_kinds(space_of(2, "ab", PAPER), "ema")
    with pytest.raises(ValueError, match="role/aux1: should be one of ema. Found `frozen`"):
        params_of(space, distillation("t", "a"))
