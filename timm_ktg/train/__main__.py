"""Training: `accelerate launch -m timm_ktg.train [RECIPE] [--section.field value ...]`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..errors import RecipeError, masked
from ..recipe.command_line import Command, parse_command
from ..recipe.longer import OTHERWISE, longer_problem
from ..recipe.node_config import NodeConfig
from ..recipe.recipe import Recipe, check_recipe, read_recipe, save_recipe
from ..recipe.resume import change_recipe, outdates_result
from ..records.reader import runs_in
from ..records.result import RunResult
from ..records.run_directory import (
    RunDirectory,
    check_output_dir,
    create_run_directory,
    write_seeds,
)
from ..tracking.trackers import check_tracking
from .checkpoint import epochs_done, newest_state
from .identity import identity_of
from .metrics import TrainingError
from .program import (
    choose_device,
    create_accelerator,
    resolved,
    run_program,
    share_imports,
)
from .run import run_training
from .seeds import Ready, first_to_run, run_seeds, taught, with_seed
from .show import show_graph, show_result, show_seeds
from .teachers import teacher_recipe
from .training import Training, build_training

PROGRAM = "accelerate launch -m timm_ktg.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Train.

    Args:
        argv: The arguments; None: the command line's.

    Returns:
        The exit code: 0, 1 if a run cannot go on, 2 if the recipe or the command line is wrong, 130
        if interrupted.
    """
    if argv is None:
        share_imports()
    return run_program(
        lambda: _parsed(sys.argv[1:] if argv is None else argv),
        run,
        "Resume it with --resume and the run's directory.",
        (TrainingError,),
    )


def _parsed(argv: Sequence[str]) -> Command:
    command = parse_command(argv, PROGRAM)
    choose_device(command.recipe.train.device)
    for run in {RunDirectory(command.resume), *runs_in(command.resume)} if command.resume else ():
        run.check()
    if command.resume:
        _check_goes_on(command.resume, command.recipe)
    check_tracking(command.recipe.tracking, command.seeds)
    if command.output_dir and not command.resume:
        check_output_dir(command.output_dir, command.overwrite)
        _check_keeps_weights(command.recipe, command.output_dir)
    return command


def _check_keeps_weights(recipe: Recipe, output_dir: Path) -> None:
    """Raise RecipeError if nodes start from weights that the run would replace."""
    inside = [
        f"output-dir: {output_dir} holds the weights that graph.nodes.{name} starts from. Choose "
        "another directory."
        for name, node in recipe.graph.nodes.items()
        if isinstance(node, NodeConfig)
        and node.checkpoint_path is not None
        and Path(node.checkpoint_path).resolve().is_relative_to(output_dir.resolve())
    ]
    if inside:
        raise RecipeError(inside)


def _check_goes_on(path: Path, recipe: Recipe) -> None:
    """Check that a run to resume can go on, with the epochs of a recipe.

    Raises:
        RecipeError: It would be trained all over again, or cannot go on for these epochs.
    """
    run = RunDirectory(path)
    for each in runs_in(path):
        if not each.summary.exists() or each.checkpoint.exists():
            continue
        if each == run or outdates_result(each.recipe, recipe):  # the result of a seed can stay
            said = f"{each.path} is complete, and has no checkpoint to go on from"
            raise RecipeError([f"resume: {said}. Start a new run from it: --from {each.path}"])
    before = check_recipe(read_recipe(run.recipe)).train
    if before.epochs == recipe.train.epochs:
        return
    for each in runs_in(path):
        done = epochs_done(each.checkpoint)
        problem = f"should stay {before.epochs}: an earlier version began the run. {OTHERWISE}"
        if done is not None:
            problem = longer_problem(before, recipe, done) or ""
        if problem:
            raise RecipeError([f"train.epochs: {problem}"])


def run(command: Command) -> None:
    """Train, evaluate and export the graph of a recipe, for one seed or for several.

    Raises:
        RecipeError: The recipe or the command line is wrong.
        TrainingError: A loss is not finite, or an update cannot be recorded as asked.
    """
    start = time.perf_counter()
    accelerator = create_accelerator(command.recipe)
    if not accelerator.is_main_process:
        logging.getLogger("timm_ktg").setLevel(logging.ERROR)  # one process warns for all
    recipe = resolved(command.recipe, accelerator)
    ready = _build(command, recipe)
    if command.dry_run:
        accelerator.print("Dry run: everything was built and checked, nothing was trained.")
        return
    if command.resume and command.overridden and not command.seeds:
        _check_states(RunDirectory(command.resume), *ready.values())
    if recipe.graph.trained_first:
        ready = {}  # what was built lacks their weights
    with _opened(command, recipe, accelerator) as directory:
        if command.seeds:
            seeds_result = run_seeds(recipe, command.seeds, directory, ready)
            if accelerator.is_main_process:
                show_seeds(seeds_result, directory)
        else:
            training = (
                ready[recipe.train.seed]
                if ready
                else build_training(taught(recipe, directory), create_accelerator(recipe))
            )
            result = run_training(training, directory, command.resume is not None, start)
            if accelerator.is_main_process:
                _show(result, directory)
    accelerator.end_training()


def _build(command: Command, recipe: Recipe) -> Ready:
    """Build the first training and show its graph, before anything is written.

    Returns:
        The training by its seed; empty if all of several seeds are complete.
    """
    if command.seeds:
        seed = first_to_run(command.seeds, command.resume)
        if seed is None:
            return {}
        recipe = with_seed(recipe, seed)
    if recipe.graph.trained_first:  # they lack their weights, so no table of their logits is of use
        train = recipe.train.model_copy(update={"teacher_table": "never"})
        recipe = recipe.model_copy(update={"train": train})
    for name in recipe.graph.trained_first:
        teacher_recipe(recipe, name)  # raises what is wrong with it
    accelerator = create_accelerator(recipe)  # a separate one, because it refers to the training
    dataset = masked(recipe.data.dataset)
    precision = "float32" if recipe.train.mixed_precision == "no" else recipe.train.mixed_precision
    accelerator.print(f"Reading {dataset}, building {len(recipe.graph.nodes)} nodes ({precision}).")
    training = build_training(recipe, accelerator)
    if accelerator.is_main_process:
        show_graph(training.graph, {name: n.title for name, n in recipe.graph.nodes.items()})
    return {recipe.train.seed: training}


def _check_states(run: RunDirectory, training: Training) -> None:
    """Raise RecipeError if no state of a run is usable, before its recipe and its result change."""
    newest_state(run.checkpoint, identity_of(training.recipe, training.splits, run))


@contextmanager
def _opened(command: Command, recipe: Recipe, accelerator: Accelerator) -> Iterator[RunDirectory]:
    """Yield the directory of the run, which the main process makes and holds for this command."""
    made: list[Any] = [None]
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                made = [_made(command, recipe, held)]
            except (RecipeError, OSError) as error:
                made = [error]
        broadcast_object_list(made)
        if isinstance(made[0], Exception):
            raise made[0]
        assert isinstance(made[0], RunDirectory)
        yield made[0]


def _made(command: Command, recipe: Recipe, held: ExitStack) -> RunDirectory:
    """Make the directory of a new run with its recipe, or change the recipe of one to resume.

    Args:
        command: The command.
        recipe: The resolved recipe.
        held: Takes over the lock of the directory.
    """
    if command.resume:
        directory = RunDirectory(command.resume)
        held.enter_context(directory.held())
        if command.overridden:
            _change(directory, recipe)
        return directory
    directory = create_run_directory(command.name, command.output_dir, command.overwrite)
    held.enter_context(directory.held())
    directory.clear(command.overwrite)
    if command.seeds:  # before the recipe, which alone would be a run of a single seed
        write_seeds(directory.path, command.seeds)
    save_recipe(recipe, directory.recipe)
    return directory


def _change(directory: RunDirectory, recipe: Recipe) -> None:
    """Change the recipes of a run to resume, and drop results on another test split."""
    seeds = [run for run in runs_in(directory.path) if run.recipe.is_file()]
    for run in {directory, *seeds}:
        # First, because a kill between the two must not leave it beside the new recipe.
        if outdates_result(run.recipe, recipe):
            run.summary.unlink(missing_ok=True)
        change_recipe(run.recipe, recipe)


def _show(result: RunResult, directory: RunDirectory) -> None:
    show_result(
        result,
        [
            ("recipe", str(directory.recipe)),
            ("metrics", str(directory.metrics)),
            ("summary", str(directory.summary)),
            ("pictures", f"{directory.graph}, {directory.curves.name}"),
            ("weights", str(directory.nodes / "<node>.safetensors")),
            ("card", str(directory.card)),
            *_best_line(result, directory),
            ("resume", f"{PROGRAM} --resume {directory.path}"),
        ],
    )


def _best_line(result: RunResult, directory: RunDirectory) -> Iterator[tuple[str, str]]:
    if best := result.best:
        found = f"epoch {best.epoch}, validation {best.metric} {best.value:.4g}"
        yield "best", f"{directory.best.path} ({found})"


if __name__ == "__main__":
    sys.exit(main())
