"""What a search came to: the best graphs beside the controls, their figures, and the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna import Study

from ..graph.topology import LABEL
from ..records.sample import Sample, gain
from .canonical import ALONE, EVERY, CanonicalGraph
from .looks import Looks
from .teachers import Teacher, teachers_of
from .trials import COMPLETE, DUPLICATE, FAILED, PRUNED, TRAINING, finished, records

LABEL_ONLY = "label-only"
INDEPENDENT = "independent"  # the networks of an ensemble, each trained on the labels alone


@dataclass(frozen=True)
class Row:
    """A graph to train again.

    The jobs of the final trainings are named by its repr (see `final.digest_of`), in which the
    name stands for what is left out of it.

    Args:
        name: What it is called in the table and on the disk.
        graph: The graph.
        reduction: How a node's losses from networks add up.
        trial: Number of the trial that found it; None: a control.
        value: Validation top-1 in percent of one training on the search's split, if there was one.
        temperature: Of the edges between networks.
        smoothing: Of the labels; None: as the recipe says.
        teacher: Number of the first teacher of each model, see `Teacher`.
        cost: What the trial cost, see `TrialRecord.cost`; empty for a control.
    """

    name: str
    graph: CanonicalGraph
    reduction: str
    trial: int | None = None
    value: float | None = None
    temperature: float = field(default=1.0, repr=False)
    smoothing: float | None = field(default=None, repr=False)
    teacher: int = field(default=1, repr=False)
    cost: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def training(self) -> tuple[Any, ...]:
        """All that decides its training but the seed: rows that share it are trained once."""
        sources = Counter(edge.destination for edge in self.graph.edges if edge.source != LABEL)
        several = max(sources.values(), default=0) > 1  # else sum and mean are the same
        reduction = self.reduction if several else "sum"
        return self.graph.key, reduction, self.temperature, self.smoothing, self.teacher

    def teachers(self, seed: int) -> dict[str, Teacher]:
        """Return the teacher that each frozen node is, by the name of the node.

        Args:
            seed: Seed of the training that they teach in.
        """
        return teachers_of(self.graph, seed, self.teacher)


@dataclass(frozen=True)
class Result:
    """What a search came to.

    Args:
        rows: The best graphs and, after them, the controls.
        samples: Test top-1 in percent of each row by its name, over the seeds; None: no figure.
        spent: What the search cost.
        looks: Which seeds the figures are of, and how often test figures were shown.
        images: How many test images there are.
        one_teacher: Names of rows with a teacher that is one network for all seeds.
    """

    rows: Sequence[Row]
    samples: Mapping[str, Sample | None]
    spent: Mapping[str, int]
    looks: Looks
    images: int
    one_teacher: Sequence[str] = ()

    @cached_property
    def twins(self) -> dict[str, str]:
        """The rows that are the same training as an earlier row, and that row, by name."""
        first = {row.training: row.name for row in reversed(self.rows)}
        pairs = [(row.name, first[row.training]) for row in self.rows]
        return {name: twin for name, twin in pairs if name != twin}

    def is_same(self, one: str, other: str) -> bool:
        """Say whether two rows, by name, are the same training."""
        return self.twins.get(one, one) == self.twins.get(other, other)

    @cached_property
    def best_control(self) -> Row | None:
        """The control with the best test figures, of those that are not the best graph itself."""
        tested = [
            (sample.mean, row)
            for row in self.rows
            if row.trial is None and row.training != self.rows[0].training
            if (sample := self.samples[row.name]) is not None
        ]
        return max(tested, key=lambda each: each[0])[1] if tested else None

    @property
    def control_wins(self) -> bool:
        """Whether a control has better test figures than the best graph."""
        best, control = self.samples[self.rows[0].name], self.best_control
        top = None if control is None else self.samples[control.name]
        return best is not None and top is not None and top.mean > best.mean

    @property
    def verdict(self) -> str:
        """What comes of it, in a sentence or two; empty if nothing was tested."""
        best = self.rows[0]
        itself = ", ".join(name for name, first in self.twins.items() if first == best.name)
        said = f"The best graph, {best.name}, is itself a control: {itself}. " if itself else ""
        sample, control = self.samples[best.name], self.best_control
        if sample is None or control is None:
            return said.strip()
        top = self.samples[control.name]
        if self.control_wins:
            above = gain(sample, top, self.images)
            return (
                f"A control beats the best graph: {control.name} has {top} % on the test images, "
                f"{best.name} {sample} %; {above}. {said}"
            ).strip()
        above = gain(top, sample, self.images)
        return f"{said}No control beats the best graph; over the best, {control.name}: {above}."

    @property
    def bases(self) -> list[str]:
        """Names of the controls that all rows are compared with."""
        best = [] if self.best_control is None else [self.best_control.name]
        tested = [name for name in (INDEPENDENT, LABEL_ONLY) if self.samples.get(name)]
        return list(dict.fromkeys([*tested[:1], *best]))

    @property
    def notes(self) -> list[str]:
        """What one must know to read the figures, a sentence each; none if nothing was tested."""
        if not any(self.samples.values()):
            return []
        said = [
            "[95 %]: Welch's interval over the seeds. Test set: the standard error that its size "
            f"alone makes, {self.images:,} images; more seeds do not lower it.",
            *self.looks.notes,
        ]
        objective = self.rows[0].graph.objective
        if objective != ALONE:
            which = "all networks" if objective == EVERY else "all networks that learn"
            said.append(f"Figures are of the ensemble of {which}; {LABEL_ONLY} is one network.")
        if any(row.graph.frozen_nodes for row in self.rows):
            said.append("Every seed has teachers of its own, so the spread includes theirs.")
        if self.one_teacher:
            names = ", ".join(self.one_teacher)
            said.append(
                "But a given teacher (search.weights) is one network for all seeds, so the spread "
                f"leaves the teacher's out: {names}."
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """Return the result as result.json holds it."""
        return {
            "verdict": self.verdict,
            "control wins": self.control_wins,
            "rows": [self._described(row) for row in self.rows],
            "compared with": self.bases,
            "notes": self.notes,
            "objective": self.rows[0].graph.objective,
            **self.looks.as_json(),
            "test images": self.images,
            "spent": dict(self.spent),
        }

    def _described(self, row: Row) -> dict[str, Any]:
        found = self.samples[row.name]
        error = None if found is None else found.error_of_test_set(self.images)
        return {
            "name": row.name,
            "trial": row.trial,
            "same as": self.twins.get(row.name),
            "validation top1": row.value,
            "test top1": None if found is None else {**found.as_json(), "test set error": error},
            "one teacher for all seeds": row.name in self.one_teacher,
            "graph": row.graph.key,
            "reduction": row.reduction,
            "temperature": row.temperature,
            "smoothing": row.smoothing,
            "edges": row.graph.edges,
            "models": row.graph.models,
            "judged": row.graph.judged,
            "cost": dict(row.cost),
        }


def spent(study: Study, epochs: int) -> dict[str, int]:
    """Return what a search cost.

    Args:
        study: The study.
        epochs: Epochs of a whole trial.
    """
    trained = [trial for trial in finished(study) if trial.edges]
    ended = Counter(trial.state for trial in trained)
    redrawn = sum((Counter(trial.attributes.get("redrawn")) for trial in trained), Counter[str]())
    duplicates = [each for each in records(study) if each.state == DUPLICATE]
    promoted = sum(trial.promotes is not None for trial in trained)
    return {
        "complete": ended[COMPLETE],
        "pruned": ended[PRUNED],
        "failed": ended[FAILED],
        **({"promoted": promoted} if promoted else {}),
        "epochs": sum(trial.epochs for trial in trained),
        "epochs without pruning": (len(trained) - promoted) * epochs,
        "training GFLOPs": round(sum(trial.cost.get(TRAINING, 0) for trial in trained) / 1e9),
        "duplicates avoided": redrawn["seen"] + sum(not each.is_needless for each in duplicates),
        "invalid graphs drawn again": redrawn["invalid"],
    }
