"""Trains one recipe with several seeds in turn and averages the results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import RecipeError, collected
from ..recipe.recipe import Recipe, check_recipe, read_recipe, same_run, save_recipe
from ..recipe.resume import change_recipe
from ..records.files import write_whole, writing
from ..records.reader import read_result
from ..records.result import RunResult, SeedsResult
from ..records.run_directory import RunDirectory
from .program import create_accelerator, resolved
from .run import run_training
from .teachers import teacher_recipe, with_teachers
from .training import Training, build_training, problems_everywhere, together

# Trainings by seed that were built ahead; each is removed when it runs.
Ready = dict[int, Training]


def run_seeds(
    recipe: Recipe, seeds: Sequence[int], directory: RunDirectory, ready: Ready
) -> SeedsResult:
    """Train with each seed in its own directory; complete runs are not repeated.

    Args:
        recipe: The recipe; its own seed is ignored.
        seeds: The seeds.
        directory: The directory for seeds.json and a `seed-<n>` for each seed.
        ready: Trainings that are already built.

    Returns:
        The result of all seeds.

    Raises:
        RecipeError: The recipe or a directory is wrong.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    is_main = create_accelerator(recipe).is_main_process
    results = []
    for number, seed in enumerate(seeds, start=1):
        if is_main:
            print(f"Seed {seed}, {number} of {len(seeds)}.")
        run = _seed_directory(directory.path, seed)
        results.append(run_seed(recipe, seed, run, ready))
    result = SeedsResult.of(seeds, results)
    with together():
        if is_main:
            write_whole(directory.seeds, json.dumps(result.as_json(), indent=2) + "\n")
    return result


def run_seed(
    recipe: Recipe, seed: int, directory: RunDirectory, ready: Ready | None = None
) -> RunResult:
    """Train with one seed, or resume that run, or return its result if it is complete.

    Args:
        recipe: The recipe; its own seed is ignored.
        seed: The seed.
        directory: The directory of the run, which can hold an unfinished run.
        ready: Trainings that are already built.

    Raises:
        RecipeError: The recipe or a directory is wrong.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    start, ready = time.perf_counter(), ready or {}
    accelerator = create_accelerator(recipe)
    recipe = resolved(with_seed(recipe, seed), accelerator)
    with _held(directory, accelerator):
        return _run_seed(recipe, directory, ready, accelerator, start)


@contextmanager
def _held(directory: RunDirectory, accelerator: Accelerator) -> Iterator[None]:
    """Hold the directory of a run in the main process; if that fails, all processes raise."""
    problems: list[str] = []
    with ExitStack() as held:
        with together(), collected(problems):
            if accelerator.is_main_process:
                held.enter_context(directory.held())
        problems = problems_everywhere(problems)
        if problems:
            raise RecipeError(problems)
        yield


def _run_seed(
    recipe: Recipe,
    directory: RunDirectory,
    ready: Ready,
    accelerator: Accelerator,
    start: float,
) -> RunResult:
    begun = directory.recipe.is_file()
    if begun and not same_run(_recipe_of(directory), recipe.model_dump(mode="json")):
        raise RecipeError(
            [f"output-dir: {directory.path} holds a run of another recipe; choose another place."]
        )
    done = read_result(directory)
    # A run that was killed after it wrote its result lacks pictures and card. Without states it
    # cannot go on, so its result stands as it is.
    if not directory.card.is_file() and directory.checkpoint.exists():
        done = None
    accelerator.wait_for_everyone()  # all have looked before one writes it
    if done is not None:
        return done
    with together(), writing(directory.path):
        if accelerator.is_main_process and not begun:
            save_recipe(recipe, directory.recipe)
    recipe = taught(recipe, directory)
    try:
        # No variable keeps the training, so that its memory can be freed.
        return run_training(
            ready.pop(recipe.train.seed)
            if recipe.train.seed in ready
            else build_training(recipe, accelerator),
            directory,
            begun,
            start,
        )
    finally:
        accelerator.free_memory()


def taught(recipe: Recipe, directory: RunDirectory) -> Recipe:
    """Return the recipe with its teachers, once those to train first are trained.

    A teacher that is complete is not trained again, and one that is not goes on.

    Args:
        recipe: The recipe.
        directory: The directory of the run.

    Raises:
        RecipeError: A teacher's recipe or directory is wrong.
        TrainingError: A teacher's loss is not finite.
    """
    is_main = create_accelerator(recipe).is_main_process
    for name in recipe.graph.trained_first:
        run, own = directory.teacher(name), teacher_recipe(recipe, name)
        with together():
            if is_main and run.recipe.is_file():  # what a resumed run can change may have changed
                change_recipe(run.recipe, own)
        if is_main and not run.summary.exists():
            print(f"Training {name} first, on the labels alone: {run.path}")
        run_seed(own, own.train.seed, run)
    return with_teachers(recipe, directory)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed."""
    train = recipe.train.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"train": train})


def first_to_run(seeds: Sequence[int], path: Path | None) -> int | None:
    """Return the first seed whose run is not complete; None if all are complete.

    Args:
        seeds: The seeds.
        path: The directory to resume; None: no runs yet.

    Raises:
        RecipeError: A result cannot be read.
    """
    for seed in seeds:
        if path is None or read_result(_seed_directory(path, seed)) is None:
            return seed
    return None


def _recipe_of(directory: RunDirectory) -> dict[str, Any]:
    """Return a run's recipe, with the defaults of fields that its version did not have."""
    return check_recipe(read_recipe(directory.recipe)).model_dump(mode="json")


def _seed_directory(path: Path, seed: int) -> RunDirectory:
    return RunDirectory(path / f"seed-{seed}")
