"""Suites: `accelerate launch -m timm_ktg.suite SUITE [--table CSV] [--datasets NAME ...]`.

Every further start of the same command is a further worker, also on another host that sees the
same folder of runs, if its file system has locks.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from ..errors import RecipeError, did_you_mean
from ..recipe.recipe import Recipe
from ..recipe.suite_config import SuiteConfig, load_suite
from ..records.run_directory import RUNS
from ..search.processes import WorkerProcesses
from ..search.study import STOPS, StoppedError, say
from ..terminal import Parser
from ..train.metrics import TrainingError
from ..train.program import PATIENCE, choose_device, create_accelerator, run_program
from .page import write_page
from .plan import Planned
from .worker import SuiteWorker

GOES_ON = "The same command again goes on with the suite."
PROGRAM = "accelerate launch -m timm_ktg.suite"


@dataclass(frozen=True)
class SuiteCommand:
    """A parsed command line.

    Args:
        suite: The suite.
        file: Its file.
        output_dir: Folder of the runs.
        table: The CSV.
        datasets: Names of the data sets to train.
        methods: Names of the methods; none: all.
        seeds: Planned seeds; none: all.
        page: Only write the page.
        dry_run: Only say what would be trained.
        left: The runs to train; empty if only the page is written.
        example: The recipe of one of them; None: nothing will be trained.
    """

    suite: SuiteConfig
    file: Path
    output_dir: Path
    table: Path
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    page: bool
    dry_run: bool
    left: tuple[Planned, ...] = ()
    example: Recipe | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker of a suite.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, 1 if the suite cannot go on, 2 if what was asked for is wrong, 130 if it
        was interrupted.
    """
    return run_program(
        lambda: _command(_parsed(sys.argv[1:] if argv is None else argv)),
        run,
        GOES_ON,
        (TrainingError, StoppedError),
        timeout=PATIENCE,
    )


def _parsed(argv: Sequence[str]) -> Namespace:
    parser = Parser(prog=PROGRAM, allow_abbrev=False)
    parser.add_argument("suite", metavar="SUITE", type=Path, help="file of the suite")
    parser.add_argument("--output-dir", type=Path, help="folder of all runs; default: runs/SUITE")
    parser.add_argument("--table", type=Path, help="the CSV; default: results.csv among the runs")
    parser.add_argument("--datasets", nargs="+", default=[], help="only these data sets")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME=PATH", help="where a data set's images are"
    )
    parser.add_argument("--methods", nargs="+", default=[], help="only these, and their teachers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="only these planned seeds")
    parser.add_argument("--page", action="store_true", help="only write the page from the CSV")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained")
    return parser.parse_args(argv)


def _command(given: Namespace) -> SuiteCommand:
    if not given.suite.is_file():
        raise RecipeError([f"suite: should be a file. Found nothing at {given.suite}."])
    suite = load_suite(given.suite, dict(_pair(each) for each in given.data))
    planned = {seed for each in suite.datasets.values() for seed in each.seeds}
    problems = [
        f"{option}: {name} is not in the suite. It has {', '.join(map(str, known))}."
        f"{did_you_mean(str(name), map(str, known))}"
        for option, names, known in (
            ("datasets", given.datasets, list(suite.datasets)),
            ("methods", given.methods, list(suite.methods)),
            ("seeds", given.seeds, sorted(planned)),
        )
        for name in _others(names, known)
    ]
    if problems:
        raise RecipeError(problems)
    folder = given.output_dir or RUNS / given.suite.stem
    command = SuiteCommand(
        suite,
        given.suite,
        folder,
        given.table or folder / "results.csv",
        tuple(given.datasets or suite.datasets),
        tuple(given.methods),
        tuple(given.seeds),
        given.page,
        given.dry_run,
    )
    if command.page:
        return command
    worker = SuiteWorker(suite, command.output_dir, command.table, WorkerProcesses())
    left = worker.left(command.datasets, command.methods, command.seeds)
    command = replace(command, left=tuple(left))
    if command.dry_run:
        return command
    example = _example(command)
    choose_device(example.train.device)
    return replace(command, example=example)


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise RecipeError([f"data: should be NAME=PATH. Found {text}."])
    return name, path


def _others(names: Iterable[object], known: Sequence[object]) -> list[object]:
    return [name for name in names if name not in known]


def run(command: SuiteCommand) -> None:
    """Train what the table lacks, and write the page.

    Raises:
        RecipeError: What was asked for is wrong.
        StoppedError: A disk is full, say.
    """
    try:
        if command.dry_run:
            _say_plan(command)
            return
        missing = {} if command.page else _work(command)
        _write_page(command)
        if missing:
            raise StoppedError(f"{len(missing)} run(s) failed: {'; '.join(missing)}")
    except STOPS as error:
        raise StoppedError(f"{str(error).rstrip('.')}. {GOES_ON}") from error


def _work(command: SuiteCommand) -> dict[str, str]:
    """Train; return what the runs that failed said, by name."""
    suite, processes = command.suite, WorkerProcesses()
    assert command.example is not None  # it is there unless nothing is to be trained
    accelerator = create_accelerator(command.example)
    logging.getLogger("timm_ktg.graph").setLevel(logging.ERROR)
    if not accelerator.is_main_process:
        processes.follow()
        return {}
    worker = SuiteWorker(suite, command.output_dir, command.table, processes)
    try:
        worker.work(command.left)
    except RecipeError:
        processes.dismiss()
        raise
    processes.dismiss()
    accelerator.end_training()
    return worker.missing


def _example(command: SuiteCommand) -> Recipe:
    """Return the recipe of one of the trainings, which have one precision and one device.

    Teachers that are still to be trained are among them, but not those that are done.

    Raises:
        RecipeError: They have several.
    """
    suite = command.suite
    chosen = {
        (dataset, method)
        for dataset in command.datasets
        for method in suite.methods_of(dataset)
        if not command.methods or method in command.methods
    }
    if not chosen:
        raise RecipeError(["methods: should belong to one of the data sets. Found none that does."])
    left = {(run.dataset, run.method) for run in command.left}
    recipes = [suite.recipe(*each, 0, {}) for each in sorted(chosen | left)]
    for field in ("mixed_precision", "device"):
        found = ", ".join(sorted({str(getattr(recipe.train, field)) for recipe in recipes}))
        if ", " in found:
            said = "should be the same for all trainings of a command, because it is set once"
            how = "Name data sets or methods that share one (--datasets, --methods)"
            raise RecipeError([f"train.{field}: {said}. Found {found}. {how}, teachers first."])
    return recipes[0]


def _say_plan(command: SuiteCommand) -> None:
    left = len(command.left)
    say(f"{left} run{'s' * (left != 1)} to train.")
    for run in command.left:
        say(f"  {run.name}")


def _write_page(command: SuiteCommand) -> None:
    if PartialState().is_main_process:
        source = os.path.relpath(command.file, command.table.parent)
        say(f"table      {command.table}")
        say(f"page       {write_page(command.suite, command.table, source)}")


if __name__ == "__main__":
    sys.exit(main())
