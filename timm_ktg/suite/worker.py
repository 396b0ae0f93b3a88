"""One worker of a suite, of perhaps many: it takes runs until all are done."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from optuna import Trial
from optuna.storages import BaseStorage

from ..errors import RecipeError
from ..recipe.recipe import read_recipe
from ..recipe.suite_config import SuiteConfig
from ..records.files import replace_whole, writing
from ..search.jobs import Jobs
from ..search.processes import WorkerProcesses
from ..search.study import say
from ..train.metrics import TrainingError
from .plan import Planned, plan
from .table import add_runs, read_table


@dataclass(frozen=True)
class SuiteWorker:
    """A worker of a suite.

    Args:
        suite: The suite.
        runs: Folder of all runs.
        table: The CSV.
        processes: Train.
        storage: Where the workers' jobs are kept.
    """

    suite: SuiteConfig
    runs: Path
    table: Path
    processes: WorkerProcesses
    storage: BaseStorage

    def work(self, datasets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Train what the table lacks, seed after seed, so that whole seeds come first.

        Args:
            datasets: Names of data sets.
            methods: Names of methods, whose teachers are trained too; none: all.
            seeds: Planned seeds; none: all.
        """
        for dataset in datasets:
            planned = self.suite.datasets[dataset].seeds
            for seed in [each for each in planned if not seeds or each in seeds]:
                levels = list(plan(self.suite, dataset, seed, self.runs))
                wanted = self._wanted([each for level in levels for each in level], methods)
                for level in levels:
                    self._train([each for each in level if each.name in wanted])

    def _wanted(self, planned: Sequence[Planned], methods: Sequence[str]) -> set[str]:
        """Return the names of runs that the table lacks, and of those that they need."""
        rows = {(*run.key, run.recipe) for run in read_table(self.table)}
        left = [
            each
            for each in planned
            if each.key not in rows and (not methods or each.method in methods)
        ]
        wanted: set[str] = set()
        while left:
            each = left.pop()
            wanted.add(each.name)
            left += [need for need in each.needs if not need.weights.is_file()]
        return wanted

    def _train(self, runs: Sequence[Planned]) -> None:
        """Train runs that need none of each other, here or by other workers."""
        by_name = {each.name: each for each in runs}
        if not runs:
            return

        def do(name: str, trial: Trial) -> float:
            say(f"Training {name}.")
            run = by_name[name]
            recipe = run.recipe
            value = self.processes.final(recipe, recipe.train.seed, run.directory.path)
            self._note([run])
            return value

        names = list(by_name)
        digest = sha256(json.dumps([each.key for each in runs]).encode()).hexdigest()[:8]
        jobs = Jobs(f"{runs[0].dataset}, seed {runs[0].seed}, {digest}", self.storage, names, {})
        jobs.work(do, (TrainingError, RecipeError))
        for name, reason in jobs.failed().items():
            say(f"{name} is missing: {reason}")
        self._note(runs)  # of a worker that died before it could

    def _note(self, runs: Sequence[Planned]) -> None:
        """Write the rows of complete runs into the table, and their logs beside it."""
        rows = {each.key: row for each in runs if (row := each.row()) is not None}
        known = {(*run.key, run.recipe) for run in read_table(self.table)}
        add_runs(self.table, [row for key, row in rows.items() if key not in known])
        for each in runs:
            if each.key in rows and each.key not in known:
                write_log(each, self.table.parent / "logs")


def write_log(run: Planned, folder: Path) -> None:
    """Write a run's recipe and metrics into a compressed file of JSON lines.

    Args:
        run: A complete run.
        folder: Where the logs of all runs go.
    """
    path = folder / run.dataset / f"{run.method}-seed-{run.seed}.jsonl.gz"
    recipe = json.dumps({"recipe": read_recipe(run.directory.recipe)})
    text = f"{recipe}\n{run.directory.metrics.read_text(encoding='utf-8')}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_whole(path) as partial:
            partial.write_bytes(gzip.compress(text.encode(), mtime=0))
