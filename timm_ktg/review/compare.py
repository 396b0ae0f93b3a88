"""Run directories side by side: n, mean, standard deviation, and the difference to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..errors import RecipeError, did_you_mean
from ..records.reader import read_results
from ..records.result import RunResult
from ..records.sample import Sample, difference
from ..terminal import console
from .same_images import unlike_images


def show_compare(paths: Sequence[Path], node: str | None = None) -> None:
    """Print a table of run directories, each compared with the first.

    Args:
        paths: The directories.
        node: The node to compare; None: each run's target.

    Raises:
        RecipeError: A directory holds nothing that can be compared, or results on other images.
    """
    runs = [(path, read_results(path)) for path in paths]
    splits = {str(path): _split_of(path, results) for path, results in runs}
    if len(set(splits.values())) > 1:
        listed = ", ".join(f"{path}: {split}" for path, split in splits.items())
        raise RecipeError([f"compare: all runs should be evaluated on one split. Found {listed}."])
    _check_same_images(runs)
    table = Table(title=f"Top-1 in % on {splits[str(paths[0])]} images")
    for column in (
        "run",
        "node",
        "epochs",
        "n",
        "mean",
        "std",
        "test set",
        "difference",
        "95 % interval",
    ):
        table.add_column(column, justify="left" if column in ("run", "node") else "right")
    samples = [_top1(path, results, node) for path, results in runs]
    for index, ((path, results), sample) in enumerate(zip(runs, samples, strict=True)):
        gap, low, high = difference(samples[0].values, sample.values)
        interval = "n too small" if math.isnan(low) else f"{low:+.2f} .. {high:+.2f}"
        table.add_row(
            str(path),
            node or results[0].target,
            ", ".join(sorted({str(result.epochs) for result in results})),
            str(sample.n),
            f"{sample.mean:.2f}",
            "-" if sample.std is None else f"{sample.std:.2f}",
            _error(results, sample),
            f"{gap:+.2f}" if index else "-",
            interval if index else "-",
        )
    console().print(table)
    print("Intervals: Welch's, of the difference of means to the first run.")
    print("Test set: the standard error that its size alone makes; more seeds do not lower it.")


def _error(results: Sequence[RunResult], sample: Sample) -> str:
    """Return the error that the number of images alone makes; `-` if that is not known."""
    sizes = {result.images for result in results}
    images = sizes.pop() if len(sizes) == 1 else None
    return f"± {sample.error_of_test_set(images):.2f}" if images else "-"


def _split_of(path: Path, results: Sequence[RunResult]) -> str:
    """Return which images the results of a directory are on, once it is clear that all agree."""
    splits = sorted({result.split for result in results})
    if len(splits) > 1:
        found = ", ".join(splits)
        raise RecipeError([f"{path}: all seeds should be evaluated on one split. Found {found}."])
    return splits[0]


def _check_same_images(runs: Sequence[tuple[Path, Sequence[RunResult]]]) -> None:
    """Raise RecipeError if a result is on other images than the first."""
    base, (first, *_) = runs[0]
    for path, results in runs:
        for result in results:
            found = unlike_images(first, result)
            if found:
                said = f"{base}: {found[0]}, {path}: {found[1]}"
                raise RecipeError(
                    [f"compare: all runs should be evaluated on the same images. Found {said}."]
                )


def _top1(path: Path, results: Sequence[RunResult], node: str | None) -> Sample:
    """Return the top-1 in percent of a node, or of each run's target, over the seeds."""
    values = []
    for result in results:
        name = node or result.target
        if name not in result.nodes:
            known = ", ".join(result.nodes)
            near = did_you_mean(name, result.nodes)
            raise RecipeError([f"{path}: `{name}` is no node. Nodes: {known}.{near}"])
        values.append(result.nodes[name].top1)
    return Sample(tuple(values))
