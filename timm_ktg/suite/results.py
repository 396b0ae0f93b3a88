"""What the table of a suite says of a data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..recipe.suite_config import SuiteConfig
from .compare import Comparison, Figures, compare
from .table import Run

Runs = Mapping[str, Mapping[int, Run]]  # by method and seed


@dataclass(frozen=True)
class Results:
    """What a table says of one data set.

    Args:
        suite: The suite.
        dataset: Name of the data set.
        runs: The runs of this suite's recipes and planned seeds.
        stale: Rows of other recipes or seeds, which are left out.
    """

    suite: SuiteConfig
    dataset: str
    runs: Runs
    stale: Sequence[Run]

    @property
    def title(self) -> str:
        """What the data set is called."""
        return self.suite.datasets[self.dataset].title or self.dataset

    @property
    def figures(self) -> dict[str, Figures]:
        """Test top-1 in percent by method and seed, without the teachers'."""
        return self._figures(own_seed=False)

    @property
    def teachers(self) -> dict[str, Figures]:
        """Test top-1 in percent of the teachers, by method and seed."""
        return self._figures(own_seed=True)

    @cached_property
    def comparisons(self) -> dict[str, dict[str, Comparison]]:
        """Every method compared with every base, by base and method."""
        return {base: compare(base, self.figures) for base in self.suite.bases}

    @property
    def missing(self) -> list[str]:
        """The planned runs that the table does not have, a method a line."""
        seeds = self.suite.datasets[self.dataset].seeds
        lines = []
        for method in self.suite.methods_of(self.dataset):
            absent = [str(seed) for seed in seeds if seed not in self.runs.get(method, {})]
            if absent:
                lines.append(f"{method}: seed{'s' * (len(absent) > 1)} {', '.join(absent)}")
        return lines

    def name_of(self, method: str) -> str:
        """Return what a method is called."""
        return self.suite.methods[method].title or method

    def cost(self, method: str) -> tuple[float, float] | None:
        """Return a method's training FLOPs, and its teachers', in trainings of the first base.

        Teachers of teachers count, too. Weights of another data set's runs count nothing.

        Returns:
            Both, or None if the table does not say.
        """
        base = self._mflops(self.suite.bases[0])
        own = self._mflops(method)
        is_taught_here = self.suite.datasets[self.dataset].weights_from is None
        teachers = self.suite.teachers_of(method) if is_taught_here else []
        given = [self._mflops(each) for each in teachers]
        if base is None or own is None or None in given:
            return None
        return own / base, math.fsum(each for each in given if each is not None) / base

    def _figures(self, own_seed: bool) -> dict[str, Figures]:
        return {
            name: {seed: run.test_top1 for seed, run in runs.items()}
            for name, runs in self.runs.items()
            if self.suite.methods[name].own_seed == own_seed
        }

    def _mflops(self, method: str) -> float | None:
        """Return the MFLOPs of a method's whole training, for each image of the training set."""
        for run in self.runs.get(method, {}).values():
            if run.training_mflops is not None:
                return run.training_mflops * run.epochs
        return None


def results_of(suite: SuiteConfig, dataset: str, rows: Sequence[Run]) -> Results:
    """Return what rows say of a data set.

    Args:
        suite: The suite.
        dataset: Name of the data set.
        rows: The rows of the table, of any data set.
    """
    digests = {method: suite.digest(dataset, method) for method in suite.methods_of(dataset)}
    seeds, stale = suite.datasets[dataset].seeds, []
    runs: dict[str, dict[int, Run]] = defaultdict(dict)
    for row in rows:
        if row.dataset != dataset:
            continue
        if digests.get(row.method) == row.recipe and row.seed in seeds:
            runs[row.method][row.seed] = row
        else:
            stale.append(row)
    ordered = {method: dict(sorted(runs[method].items())) for method in digests if method in runs}
    return Results(suite, dataset, ordered, stale)
