import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_ktg.graph.topology import edge_problems, name_problem, nodes_that_matter, target_problem

NODES = ("student", "helper", "teacher")


def test_edges_of_a_sound_graph_have_no_problem() -> None:
    edges = [("label", "student"), ("helper", "student"), ("student", "helper")]
    assert edge_problems(NODES, edges) == []


@pytest.mark.parametrize(
    ("edge", "problem"),
    [
        (("student", "student"), "`student` cannot learn from itself."),
        (("student", "label"), "`label` cannot learn."),
        (("label", "label"), "`label` cannot learn from itself."),
        (
            ("helpr", "student"),
            "`helpr` is no node. Nodes: helper, student, teacher. Did you mean `helper`?",
        ),
        (
            ("label", "studnt"),
            "`studnt` is no node. Nodes: helper, student, teacher. Did you mean `student`?",
        ),
        (
            ("labels", "student"),
            "`labels` is no node. Nodes: helper, student, teacher. Did you mean `label`?",
        ),
        (("qqq", "student"), "`qqq` is no node. Nodes: helper, student, teacher."),
    ],
)
def test_edge_problem_says_what_is_wrong(edge: tuple[str, str], problem: str) -> None:
    assert edge_problems(NODES, [edge]) == [(edge, problem)]


def test_edge_that_is_there_twice_is_a_problem_once() -> None:
    edges = [("label", "student"), ("helper", "student"), ("label", "student")]
    assert edge_problems(NODES, edges) == [(("label", "student"), "the edge is there twice.")]


def test_edge_problems_are_all_found() -> None:
    edges = [("a", "b"), ("student", "student"), ("teacher", "label")]
    assert [edge for edge, _ in edge_problems(NODES, edges)] == [("a", "b"), *edges]


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
    assert "`label` is the label's own name" in str(name_problem("label"))


def test_target_with_an_incoming_edge_is_no_problem() -> None:
    assert target_problem(NODES, [("label", "student")], "student") is None
    assert target_problem(NODES, [("helper", "student")], "student") is None


def test_target_that_is_no_node_is_a_problem() -> None:
    problem = target_problem(NODES, [("label", "student")], "studet")
    assert problem == (
        "`studet` is no node. Nodes: student, helper, teacher. Did you mean `student`?"
    )


@pytest.mark.parametrize("edges", [[], [("student", "helper")], [("label", "helper")]])
def test_target_without_an_incoming_edge_is_a_problem(edges: list[tuple[str, str]]) -> None:
    problem = target_problem(NODES, edges, "student")
    assert problem == "the target `student` should learn from something. It has no incoming edge."


@pytest.mark.parametrize(
    ("edges", "keep", "expected"),
    [
        ([("label", "a")], (), "a"),
        ([("label", "a"), ("label", "b")], (), "a"),
        ([("a", "b"), ("label", "a")], (), "a"),  # b learns from the target, which learns not
        ([("b", "a"), ("c", "b"), ("d", "c")], (), "abcd"),  # a chain
        ([("b", "a"), ("a", "b"), ("c", "d"), ("d", "c")], (), "ab"),  # two cycles
        ([("a", "c"), ("d", "c")], ("c",), "acd"),  # what reaches a kept node is kept too
        ([("label", "a")], ("b",), "ab"),
    ],
)
def test_nodes_that_matter_reach_the_target_or_a_kept_node(
    edges: list[tuple[str, str]], keep: tuple[str, ...], expected: str
) -> None:
    assert nodes_that_matter(edges, "a", keep) == set(expected)


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
    assert nodes_that_matter([*edges, ("label", "t")], "t") == expected
