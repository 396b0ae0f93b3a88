"""The directory of a run: what lies where, and what may be written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError, located
from ..records.metrics import Metrics
from .files import write_whole

RUNS = Path("runs")


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; running it again repeats the run."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """A line of JSON an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The result, written when the run is complete."""
        return self.path / "summary.json"

    @property
    def nodes(self) -> Path:
        """Every node's weights, as timm reads them."""
        return self.path / "nodes"

    @property
    def seeds(self) -> Path:
        """The result of several seeds, whose runs lie in `seed-<n>` beside it."""
        return self.path / "seeds.json"

    @property
    def graph(self) -> Path:
        """The graph as a picture, with results when there are any."""
        return self.path / "graph.svg"

    @property
    def curves(self) -> Path:
        """Losses, top-1 and shares passed, epoch by epoch, as a picture."""
        return self.path / "curves.png"

    @property
    def checkpoint(self) -> Path:
        """States to go on from."""
        return self.path / "checkpoint"

    @property
    def wandb_id(self) -> Path:
        """The run's id in Weights & Biases."""
        return self.path / "wandb.json"

    @property
    def wandb(self) -> Path:
        """What Weights & Biases keeps of the run; `wandb sync` uploads an offline one from it."""
        return self.path / "wandb"

    @property
    def trackers(self) -> Path:
        """What other trackers write, each below its name."""
        return self.path / "trackers"

    @property
    def report(self) -> Path:
        """The page that `timm_ktg.review report` makes of the run."""
        return self.path / "report.html"

    @property
    def own(self) -> tuple[Path, ...]:
        """All that a run writes."""
        files = (self.recipe, self.metrics, self.summary, self.seeds, self.nodes, self.checkpoint)
        shown = (self.graph, self.curves, self.report)
        tracked = (self.wandb_id, self.wandb, self.trackers)
        return (*files, *shown, *tracked, *self.path.glob("seed-*"))

    def log(self, metrics: Metrics) -> None:
        """Append an epoch's line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_metrics(self) -> list[Metrics]:
        """Return the lines of the epochs so far, but for one that is being written.

        Raises:
            ValueError: A line is none of JSON's, or holds something else.
        """
        if not self.metrics.is_file():
            return []
        # A whole line ends in a newline.
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [dict(json.loads(line)) for line in lines]
        except TypeError as error:
            raise ValueError(str(error)) from None

    def forget_after(self, epoch: int) -> None:
        """Drop the lines of epochs after `epoch`, and one that was cut off while written."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()[:epoch]
        write_whole(self.metrics, "".join(line + "\n" for line in lines))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the result; None: the run has not come to its end."""
        if not self.summary.is_file():
            return None
        found: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return found

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        write_whole(self.summary, json.dumps(summary, indent=2) + "\n")


def create_run_directory(
    name: str, output_dir: Path | None, overwrite: bool = False
) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        name: What the run is called.
        output_dir: The directory; None: `runs/<name>`, or the next of `-2`, `-3`, ... that is free.
        overwrite: Replace a run that lies there.

    Raises:
        RecipeError: The directory is not empty, and may not be replaced.
    """
    if output_dir is None:
        return RunDirectory(_next_free(RUNS / name))
    check_output_dir(output_dir, overwrite)
    run = RunDirectory(output_dir)
    with located(f"output-dir: {output_dir} cannot be made"):
        output_dir.mkdir(parents=True, exist_ok=True)
    for path in run.own:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return run


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Raise RecipeError if a new run cannot be written into a directory.

    Args:
        output_dir: The directory, which need not exist.
        overwrite: Whether a run that lies there may be replaced.
    """
    if not output_dir.exists():
        return
    run = RunDirectory(output_dir)
    found = list(output_dir.iterdir()) if output_dir.is_dir() else [output_dir]
    if found and not (run.recipe.is_file() and all(path in run.own for path in found)):
        raise RecipeError([f"output-dir: {output_dir} is there and is no run; choose another."])
    if found and not overwrite:
        raise RecipeError(
            [
                f"output-dir: {output_dir} holds a run. Go on with it by --resume {output_dir}, "
                "replace it by --overwrite, or choose another directory."
            ]
        )


def write_seeds(path: Path, seeds: Sequence[int]) -> None:
    """Note which seeds a directory is for, before the first is trained."""
    write_whole(RunDirectory(path).seeds, json.dumps({"seeds": list(seeds)}) + "\n")


def read_seeds(path: Path) -> tuple[int, ...]:
    """Return the seeds that a directory is for; none if it is a single run's.

    Raises:
        RecipeError: Its seeds.json names none.
    """
    file = RunDirectory(path).seeds
    if not file.is_file():
        return ()
    try:
        return tuple(int(seed) for seed in json.loads(file.read_text(encoding="utf-8"))["seeds"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"resume: {file} should name the seeds. Found {error!r}."]) from None


def _next_free(path: Path) -> Path:
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
