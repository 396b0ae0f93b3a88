"""What runs have left on disk, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import RecipeError, located
from .metrics import Metrics
from .result import RunResult
from .run_directory import RunDirectory


def runs_in(path: Path) -> tuple[RunDirectory, ...]:
    """Return the runs in a directory: one for each of several seeds, or the directory itself.

    Args:
        path: The directory; it need not hold a run yet.
    """
    seeds = tuple(RunDirectory(each) for each in sorted(path.glob("seed-*")))
    return seeds or (RunDirectory(path),)


def read_epochs(run: RunDirectory) -> list[Metrics]:
    """Return what each epoch so far measured; a line that is still being written is left out.

    Raises:
        RecipeError: metrics.jsonl cannot be read.
    """
    if not run.metrics.exists():
        return []
    with located(f"{run.metrics}: cannot be read"):
        # A whole line ends in a newline.
        lines = run.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [_metrics(json.loads(line)) for line in lines]


def read_result(run: RunDirectory) -> RunResult | None:
    """Return the result of a run, or None if the run is not complete.

    Raises:
        RecipeError: summary.json cannot be read.
    """
    if not run.summary.exists():
        return None
    with located(f"{run.summary}: cannot be read"):
        return RunResult.from_json(json.loads(run.summary.read_text(encoding="utf-8")))


def read_results(path: Path) -> tuple[RunResult, ...]:
    """Return the results of the complete runs in a directory, at least one.

    Raises:
        RecipeError: There is none, or one cannot be read.
    """
    found = [read_result(run) for run in runs_in(path)]
    results = tuple(result for result in found if result is not None)
    if not results:
        said = f"{path}: should hold a complete run (summary.json). Found none."
        raise RecipeError([f"{said}{_figures_of_many(path)}"])
    return results


def _figures_of_many(path: Path) -> str:
    """Return where the figures of a search or of a suite are, if the directory is one's."""
    for whose, name in (("search", "result.json"), ("suite", "results.csv")):
        if (path / name).is_file():
            return f" It is the directory of a {whose}, whose figures are in {path / name}."
    return ""


def _metrics(values: Any) -> Metrics:
    if not isinstance(values, dict):
        raise ValueError(f"a line should hold an epoch's metrics by name. Found {values!r}")
    return values
