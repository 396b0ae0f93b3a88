"""Teachers: which network a frozen node of a graph is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..data import derive_seed
from .canonical import CanonicalGraph


class Teacher(NamedTuple):
    """A frozen network, trained on the labels from a seed that no other network has.

    Two frozen nodes of one model are two teachers, and neither starts from the student's initial
    weights or sees the images in the student's order.

    Args:
        model: timm's name of its model.
        number: Which of the model's teachers it is, from 1.
        seed: Seed of the trainings that it teaches in.
    """

    model: str
    number: int
    seed: int

    @property
    def training_seed(self) -> int:
        """The seed that the teacher itself is trained from."""
        return derive_seed(f"teacher {self.model}", self.number, self.seed) % 2**32

    def __str__(self) -> str:
        """Return `resnet8_cifar, teacher 2, seed 0`, which also names its training."""
        return f"{self.model}, teacher {self.number}, seed {self.seed}"


def teachers_of(graph: CanonicalGraph, seed: int, first: int = 1) -> dict[str, Teacher]:
    """Return the teacher that each frozen node of a graph is, by the name of the node.

    Args:
        graph: The graph.
        seed: Seed of the trainings that they teach in.
        first: Number of the first teacher of each model.
    """
    count: Counter[str] = Counter()
    teachers = {}
    for name in graph.frozen_nodes:
        model = graph.models[name]
        teachers[name] = Teacher(model, first + count[model], seed)
        count[model] += 1
    return teachers


def teachers_for(models: Iterable[str], most: int, seed: int) -> list[Teacher]:
    """Return every teacher that a graph with at most so many frozen nodes may have."""
    return [Teacher(model, number, seed) for model in models for number in range(1, most + 1)]
