"""One worker of a suite, of perhaps many: it takes runs until all are done."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import RecipeError, one_line
from ..recipe.recipe import read_recipe
from ..recipe.suite_config import SuiteConfig
from ..records.files import replace_whole, write_whole, writing
from ..search.processes import WorkerProcesses, failures
from ..search.study import say
from ..train.metrics import TrainingError
from .plan import Key, Planned, current_commit, left_to_train, plan
from .table import add_runs, read_table


@dataclass(frozen=True)
class SuiteWorker:
    """A worker of a suite. A run belongs to the worker that holds its lock, which ends with it.

    Args:
        suite: The suite.
        runs: Folder of all runs.
        table: The CSV.
        processes: Train.
        missing: What the runs that failed said, by name.
        commit: What trains; asked for at the start, because files may change meanwhile, but the
            code in memory does not.
        started: When it began, in seconds since the epoch.
    """

    suite: SuiteConfig
    runs: Path
    table: Path
    processes: WorkerProcesses
    missing: dict[str, str] = field(default_factory=dict)
    commit: str = field(default_factory=current_commit)
    started: float = field(default_factory=time.time)

    def left(
        self, datasets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
    ) -> list[Planned]:
        """Return the runs to train, seed after seed, so that whole seeds come first.

        Args:
            datasets: Names of data sets.
            methods: Names of methods, whose teachers are trained too; none: all.
            seeds: Planned seeds; none: all.
        """
        known = self._known()
        runs = (
            run
            for dataset in datasets
            for seed in self.suite.datasets[dataset].seeds
            if not seeds or seed in seeds
            for run in left_to_train(plan(self.suite, dataset, seed, self.runs), known, methods)
        )
        # A data set's teachers can be needed by another, too.
        return list({run.key: run for run in runs}.values())

    def work(self, runs: Sequence[Planned]) -> None:
        """Train runs, each once the runs that it needs are done, here or by other workers."""
        left = list(runs)
        while left:
            ready = [each for each in left if not any(need in left for need in each.needs)]
            done = next((each for each in ready if self._try(each)), None)
            if done is None:  # other workers have all that could be done
                say(f"Waiting for other workers: {', '.join(each.name for each in ready)}.")
                self._try(done := ready[0], timeout=-1)
            left.remove(done)

    def _try(self, run: Planned, timeout: int = 0) -> bool:
        """Train a run unless it is complete; return whether no other worker has it.

        Args:
            run: The run.
            timeout: Seconds to wait for another worker that has it; -1: until it is done.
        """
        folder = run.directory.path
        folder.parent.mkdir(parents=True, exist_ok=True)
        wrong: tuple[type[Exception], ...] = (RecipeError, *failures())
        try:
            with FileLock(folder.with_name(f".{folder.name}.lock"), timeout):
                if not run.directory.summary.exists():
                    self._train(run)
                self._note(run)
        except Timeout:
            return False
        except wrong as error:
            self.missing[run.name] = one_line(error)
            say(f"{run.name} is missing: {one_line(error)}")
        return True

    def _train(self, run: Planned) -> None:
        """Train a run, unless another worker has seen it fail since this one began.

        Raises:
            RecipeError: It cannot be trained.
            TrainingError: It failed.
        """
        file = run.failure_file
        if file.exists() and file.stat().st_mtime > self.started:
            raise TrainingError(file.read_text(encoding="utf-8"))
        say(f"Training {run.name}.")
        recipe = run.recipe
        write_whole(run.commit_file, f"{self.commit}\n")
        file.unlink(missing_ok=True)
        try:
            self.processes.final(recipe, recipe.train.seed, run.directory.path)
        except TrainingError as error:
            write_whole(file, str(error))
            raise

    def _note(self, run: Planned) -> None:
        """Write the row of a complete run into the table, and its log beside it."""
        row = run.row()
        if row is not None and run.key not in self._known():
            write_log(run, self.table.parent / "logs")
            add_runs(self.table, [row])

    def _known(self) -> set[Key]:
        return {(*run.key, run.recipe) for run in read_table(self.table)}


def write_log(run: Planned, folder: Path) -> None:
    """Write a run's recipe and metrics into a compressed file of JSON lines.

    Args:
        run: A complete run.
        folder: Where the logs of all runs go.
    """
    path = folder / run.dataset / f"{run.method}-{run.digest}-seed-{run.seed}.jsonl.gz"
    recipe = json.dumps({"recipe": read_recipe(run.directory.recipe)})
    text = f"{recipe}\n{run.directory.metrics.read_text(encoding='utf-8')}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_whole(path) as partial:
            partial.write_bytes(gzip.compress(text.encode(), mtime=0))
