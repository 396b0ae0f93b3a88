"""One recipe with several seeds, one after another, and the mean of their results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from rich.table import Table

from ..errors import RecipeError
from ..recipe.recipe import Recipe, read_recipe, same_run, save_recipe
from ..records.files import write_whole
from ..records.run_directory import RunDirectory
from ..records.sample import Sample
from ..terminal import console
from .run import Summary, create_accelerator, run_training, settled
from .training import build_training


def run_seeds(
    recipe: Recipe, seeds: Sequence[int], directory: RunDirectory, is_main: bool
) -> Summary:
    """Train with every seed in a directory of its own; those that are complete are not run again.

    Args:
        recipe: The recipe, whose own seed does not matter.
        seeds: The seeds.
        directory: Holds `seed-<n>` for every seed, and seeds.json.
        is_main: Whether this process speaks and writes.

    Returns:
        What seeds.json holds.

    Raises:
        RecipeError: What was asked for is wrong.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    runs = []
    for number, seed in enumerate(seeds, start=1):
        if is_main:
            print(f"Seed {seed}, {number} of {len(seeds)}.")
        runs.append(run_seed(recipe, seed, RunDirectory(directory.path / f"seed-{seed}")))
    summary = combined(seeds, runs)
    if is_main:
        write_whole(directory.seeds, json.dumps(summary, indent=2) + "\n")
    return summary


def run_seed(recipe: Recipe, seed: int, directory: RunDirectory) -> Summary:
    """Train with one seed, or go on with that, or return the result if it is there.

    Raises:
        RecipeError: What was asked for is wrong.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    start = time.perf_counter()
    train = recipe.train.model_copy(update={"seed": seed})
    recipe = recipe.model_copy(update={"train": train})
    accelerator = create_accelerator(recipe)
    recipe = settled(recipe, accelerator)
    begun = directory.recipe.is_file()
    if begun and not same_run(read_recipe(directory.recipe), recipe.model_dump(mode="json")):
        raise RecipeError(
            [f"output-dir: {directory.path} holds a run of another recipe; choose another place."]
        )
    done = directory.read_summary()
    accelerator.wait_for_everyone()  # before one of them writes it
    if done is not None:
        return done
    if accelerator.is_main_process and not begun:
        directory.path.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, directory.recipe)
    accelerator.wait_for_everyone()
    try:
        resume = directory.checkpoint.exists()
        return run_training(build_training(recipe, accelerator), directory, resume, start)
    finally:
        accelerator.free_memory()


def combined(seeds: Sequence[int], runs: Sequence[Summary]) -> Summary:
    """Return the results of all seeds as one: mean, standard deviation, n and values."""
    first = runs[0]
    return {
        "target": first["target"],
        "split": first["split"],
        "epochs": first["epochs"],
        "seeds": list(seeds),
        "nodes": {
            name: {top: _sample(runs, name, top).as_json() for top in first["nodes"][name]}
            for name in first["nodes"]
        },
    }


def show_seeds(summary: Summary, directory: RunDirectory) -> None:
    """Print every node's mean accuracy, and where everything lies."""
    seeds = ", ".join(map(str, summary["seeds"]))
    table = Table(title=f"Result on {summary['split']} images, mean ± std, seeds {seeds}")
    for column in ("node", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for name, node in summary["nodes"].items():
        is_target = name == summary["target"]
        figures = [str(Sample(tuple(node[top]["values"]))) for top in ("top1", "top5")]
        style = "bold" if is_target else None
        table.add_row(f"{name} (target)" if is_target else name, *figures, style=style)
    console().print(table)
    print(f"runs       {directory.path / 'seed-<n>'}")
    print(f"summary    {directory.seeds}")


def _sample(runs: Sequence[Mapping[str, Summary]], name: str, top: str) -> Sample:
    return Sample(tuple(run["nodes"][name][top] for run in runs))
