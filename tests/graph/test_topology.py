from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_ktg.graph.topology import Link, Pair, Problem, Topology, Traits, name_problem, tags_of

NODES = ("student", "helper", "teacher")


def topology(
    edges: Iterable[Pair | Link],
    target: str = "student",
    keep: tuple[str, ...] = (),
    nodes: Iterable[str | Traits] = NODES,
) -> Topology:
    traits = (each if isinstance(each, Traits) else Traits(each, True) for each in nodes)
    return Topology(tuple(traits), tuple(Link(*edge) for edge in edges), target, keep)


def said(edges: Iterable[Pair | Link], **options: object) -> list[Problem]:
    return list(topology(edges, **options).problems())  # type: ignore[arg-type]


LEARNS = ("label", "student")


def test_edges_of_a_sound_graph_have_no_problem() -> None:
    assert said([LEARNS, ("helper", "student"), ("student", "helper")]) == []


@pytest.mark.parametrize(
    ("edge", "problem"),
    [
        (("student", "student"), "`student` cannot learn from itself."),
        (("student", "label"), "`label` cannot learn."),
        (("label", "label"), "`label` cannot learn from itself."),
        (
            ("helpr", "student"),
            "`helpr` is not a node. Nodes: helper, student, teacher. Did you mean `helper`?",
        ),
        (
            ("label", "studnt"),
            "`studnt` is not a node. Nodes: helper, student, teacher. Did you mean `student`?",
        ),
        (
            ("labels", "student"),
            "`labels` is not a node. Nodes: helper, student, teacher. Did you mean `label`?",
        ),
        (("qqq", "student"), "`qqq` is not a node. Nodes: helper, student, teacher."),
        (
            ("helper", "student", "a.b"),
            "`a.b`, after the /, should be letters, digits and `_`.",
        ),
    ],
)
def test_edge_problem_says_what_is_wrong(edge: tuple[str, str], problem: str) -> None:
    link = Link(*edge)
    assert said([LEARNS, edge]) == [Problem(("edges", link.name), problem, link)]


def test_edge_that_is_there_twice_is_a_problem_once() -> None:
    (problem,) = said([LEARNS, ("helper", "student"), LEARNS])
    assert problem.where == ("edges", "label->student")
    assert problem.what == "two edges should not have the same name."


def test_edges_of_different_tags_join_the_same_nodes() -> None:
    edges = [Link("helper", "student", "a"), Link("helper", "student", "b"), Link(*LEARNS)]
    assert said(edges) == []
    assert [link.name for link in topology(edges).active] == [
        "helper->student/a",
        "helper->student/b",
        "label->student",
    ]


def test_tags_are_the_losses_where_a_pair_has_several() -> None:
    pairs = [("a", "b"), ("c", "b"), ("a", "b")]
    assert tags_of(pairs, ["kl_div", "kl_div", "hint"]) == ["kl_div", "", "hint"]


def test_edge_problems_are_all_found() -> None:
    edges = [("a", "b"), ("student", "student"), ("teacher", "label")]
    found = [problem.edge.pair for problem in said([LEARNS, *edges]) if problem.edge]
    assert found == [("a", "b"), *edges]


def test_edge_that_is_cut_off_does_not_exist() -> None:
    edges = [Link("label", "student"), Link("helper", "student", gate="cutoff")]
    found = topology(edges)
    assert [link.name for link in found.live] == ["label->student"]
    assert found.left_out == ("helper", "teacher")
    cut = [Link("label", "student", gate="cutoff")]
    assert [problem.where for problem in said(cut)] == [("target",)]


def test_everyone_has_one_role() -> None:
    edges = [LEARNS, ("teacher", "helper"), ("helper", "student")]
    found = topology(edges, nodes=(*NODES, "idle"))
    assert found.learning == ("student", "helper")
    assert found.frozen == ("teacher",)
    assert found.left_out == ("idle",)


def test_frozen_network_without_weights_is_a_problem() -> None:
    nodes = [Traits("student"), Traits("teacher"), Traits("idle")]
    (problem,) = said([LEARNS, ("teacher", "student")], nodes=nodes)
    assert problem.where == ("nodes", "teacher")
    assert problem.what.startswith("learns from nothing, so it is frozen and should have weights")


CROWD = Traits("crowd", needs=("student", "helper"))


def test_node_that_is_made_from_others_has_no_weights_and_is_not_frozen() -> None:
    edges = [LEARNS, ("label", "helper"), ("crowd", "student")]
    found = topology(edges, nodes=(CROWD, *NODES))
    assert list(found.problems()) == []
    assert found.learning == ("student", "helper")
    assert found.frozen == ()
    assert found.order == ("student", "helper", "crowd")
    assert found.left_out == ("teacher",)


def test_label_and_weights_inform_whoever_learns_from_them_at_any_distance() -> None:
    blank = [Traits(name) for name in NODES]
    mutual = [("helper", "student"), ("student", "helper")]
    assert topology(mutual, nodes=blank).informed == {"label"}
    chain = [("teacher", "student"), ("helper", "teacher"), ("label", "helper")]
    assert topology(chain, nodes=blank).informed == {"label", *NODES}
    given = [*blank[:2], Traits("teacher", has_weights=True)]
    taught = [*mutual, ("teacher", "helper")]
    assert topology(taught, nodes=given).informed == {"label", *NODES}
    shut = [Link("label", "helper", gate="cutoff"), *mutual]
    assert topology(shut, nodes=blank).informed == {"label"}
    crowd = topology([("crowd", "student"), ("label", "helper")], nodes=(CROWD, *blank))
    assert crowd.informed == {"label", "student", "helper", "crowd"}


def test_node_that_is_made_from_others_may_be_the_target_and_makes_them_matter() -> None:
    edges = [LEARNS, ("label", "helper")]
    found = topology(edges, target="crowd", nodes=(CROWD, *NODES))
    assert list(found.problems()) == []
    assert found.matter == {"crowd", "student", "helper"}


def test_node_that_is_made_from_others_cannot_learn_nor_be_made_of_itself() -> None:
    nodes = [*NODES, CROWD._replace(needs=("student", "slow")), Traits("slow", needs=("crowd",))]
    whats = [problem.what for problem in said([LEARNS, ("label", "crowd")], nodes=nodes)]
    assert "`crowd` is made from other nodes and cannot learn." in whats
    assert any(what.startswith("should not be made of itself: ") for what in whats)


def test_need_of_a_node_that_is_not_there_is_a_problem() -> None:
    (problem,) = said([LEARNS], nodes=[*NODES, Traits("crowd", needs=("helpr",))])
    assert problem.where == ("nodes", "crowd")
    assert "`helpr` is not a node." in problem.what and "`helper`" in problem.what


@pytest.mark.parametrize("name", ["student", "a", "A1", "wrn_28_2", "Student2"])
def test_name_of_letters_digits_and_underscores_is_good(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize("name", ["", "3d", "_a", "a.b", "a-b", "a b", "a/b", "a->b"])
def test_name_of_anything_else_is_a_problem(name: str) -> None:
    problem = name_problem(name)
    assert problem == (
        f"a node's name should be a letter, then letters, digits and `_`. Found `{name}`."
    )


def test_name_of_the_label_is_a_problem() -> None:
    assert "`label` is the name of the label" in str(name_problem("label"))


def test_target_with_an_incoming_edge_is_no_problem() -> None:
    assert said([LEARNS]) == said([("helper", "student")]) == []


def test_target_that_is_no_node_is_a_problem() -> None:
    assert said([LEARNS], target="studet") == [
        Problem(
            ("target",),
            "`studet` is not a node. Nodes: student, helper, teacher. Did you mean `student`?",
        )
    ]


@pytest.mark.parametrize("edges", [[], [("student", "helper")], [("label", "helper")]])
def test_target_without_an_incoming_edge_is_a_problem(edges: list[tuple[str, str]]) -> None:
    (problem,) = said(edges)
    assert problem.what == (
        "the target `student` should learn from something. It has no incoming edge."
    )


@pytest.mark.parametrize(
    ("edges", "keep", "expected"),
    [
        ([("label", "a")], (), "a"),
        ([("label", "a"), ("label", "b")], (), "a"),
        ([("a", "b"), ("label", "a")], (), "a"),  # b learns from the target, not vice versa
        ([("b", "a"), ("c", "b"), ("d", "c")], (), "abcd"),  # a chain
        ([("b", "a"), ("a", "b"), ("c", "d"), ("d", "c")], (), "ab"),  # two cycles
        ([("a", "c"), ("d", "c")], ("c",), "acd"),  # what reaches a kept node is kept too
        ([("label", "a")], ("b",), "ab"),
    ],
)
def test_nodes_that_matter_reach_the_target_or_a_kept_node(
    edges: list[tuple[str, str]], keep: tuple[str, ...], expected: str
) -> None:
    assert topology(edges, "a", keep, "abcd").matter == set(expected)


@settings(deadline=None, max_examples=50, database=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_nodes_that_matter_are_those_of_the_transitive_closure(
    pairs: set[tuple[int, int]],
) -> None:
    adjacency = np.eye(6, dtype=int)
    for source, destination in pairs:
        adjacency[source, destination] = 1
    reaches = np.linalg.matrix_power(adjacency, 6) > 0
    names = ["t", "u", "v", "w", "x", "y"]
    edges = [(names[source], names[destination]) for source, destination in pairs]
    expected = {name for index, name in enumerate(names) if reaches[index, 0]}
    assert topology([*edges, ("label", "t")], "t", (), names).matter == expected
