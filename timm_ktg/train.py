"""The main job: `accelerate launch -m timm_ktg.train [RECIPE] [--section.field value ...]`."""

from __future__ import annotations

import hashlib
import logging
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from .checkpoint import newest_state, save_state
from .errors import ContractError, RecipeError, collected, located
from .metrics import Metrics, TrainingError
from .recipe.command_line import Command, parse_command
from .recipe.recipe import Recipe, save_recipe
from .run_directory import RunDirectory, check_output_dir, create_run_directory
from .terminal import epoch_line, progress, show_graph, show_result
from .training import (
    Training,
    build_training,
    evaluate,
    problems_everywhere,
    start_epoch,
    train_epoch,
)
from .weights import export_node

PROGRAM = "accelerate launch -m timm_ktg.train"
PACKAGES = ("timm_ktg", "torch", "timm", "accelerate", "datasets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, 1 if a run cannot go on, 2 if what was asked for is wrong, 130 if it was
        interrupted.
    """
    problems: list[str] = []
    try:
        with collected(problems):
            command = parse_command(sys.argv[1:] if argv is None else argv, PROGRAM)
            if command.output_dir and not (command.resume or command.dry_run):
                check_output_dir(command.output_dir, command.overwrite)
        problems = problems_everywhere(problems)
        if problems:
            raise RecipeError(problems)
        run(command)
    except RecipeError as error:
        return _fail(error.problems, 2)
    except ContractError as error:
        return _fail([str(error)], 2)
    except TrainingError as error:
        return _fail([str(error)], 1)
    except KeyboardInterrupt:
        return _fail(["Interrupted. --resume with the run's directory goes on with it."], 130)
    return 0


def run(command: Command) -> None:
    """Train, evaluate and export the graph of a recipe.

    Raises:
        RecipeError: What was asked for is wrong.
        TrainingError: A loss is not finite.
    """
    start = time.perf_counter()
    accelerator = _accelerator(command.recipe)
    if not accelerator.is_main_process:
        logging.getLogger("timm_ktg").setLevel(logging.ERROR)  # one process warns for all
    recipe = _settled(command.recipe, accelerator)
    accelerator.print(f"Reading {recipe.data.dataset}, building {len(recipe.graph.nodes)} nodes.")
    training = build_training(recipe, accelerator)
    if accelerator.is_main_process:
        show_graph(training.graph, {name: n.model for name, n in recipe.graph.nodes.items()})
        if training.graph.threads:
            print(f"{training.graph.threads.count} nodes at a time, a thread each.")
    if command.dry_run:
        accelerator.print("Dry run: everything is built and checked, nothing was trained.")
        return
    directory = _open(command, recipe, accelerator)
    identity = hashlib.sha256(
        (directory.recipe.read_text() + training.splits.fingerprint).encode()
    ).hexdigest()
    if command.resume:
        _go_on(training, directory, identity)
    for epoch in range(training.done.epochs, training.epochs):
        bar = progress(
            start_epoch(training),
            len(training.images.train),
            epoch + 1,
            training.epochs,
            accelerator.is_main_process,
        )
        metrics = train_epoch(training, bar)
        if training.images.val is not None:
            metrics |= evaluate(training, training.images.val, "val")
        if accelerator.is_main_process:
            directory.log(metrics)
            tqdm.write(epoch_line(metrics, training.epochs, training.graph))
        save_state(accelerator, directory.checkpoint, epoch + 1, identity)
    _finish(training, directory, start)
    accelerator.end_training()


def _accelerator(recipe: Recipe) -> Accelerator:
    with located("train.mixed_precision"):
        accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("fp16 needs an accelerator. Found a CPU, where bf16 works.")
    return accelerator


def _settled(recipe: Recipe, accelerator: Accelerator) -> Recipe:
    """Return the recipe with what accelerate decided written down."""
    train = recipe.train.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    return recipe.model_copy(update={"train": train})


def _open(command: Command, recipe: Recipe, accelerator: Accelerator) -> RunDirectory:
    """Return the run's directory, made by the main process and known to all."""
    if command.resume:
        return RunDirectory(command.resume)
    made: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            directory = create_run_directory(command.name, command.output_dir, command.overwrite)
            save_recipe(recipe, directory.recipe)
            made = [directory]
        except RecipeError as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], RecipeError):
        raise made[0]
    assert isinstance(made[0], RunDirectory)
    return made[0]


def _go_on(training: Training, directory: RunDirectory, identity: str) -> None:
    """Load the newest good state of a run."""
    accelerator = training.accelerator
    state, refused = newest_state(directory.checkpoint, identity)
    for line in refused:
        accelerator.print(f"Refused {line}")
    if state is not None:
        accelerator.load_state(str(state))
    if accelerator.is_main_process:
        directory.forget_after(training.done.epochs)
    accelerator.print(f"Going on from {state or 'the start'}, epochs done: {training.done.epochs}.")


def _finish(training: Training, directory: RunDirectory, start: float) -> None:
    """Evaluate the last epoch once on the test images, export the nodes, show the result."""
    graph, images = training.graph, training.images
    split, loader = "test", images.test() if images.test else None
    if loader is None:
        split, loader = ("val", images.val) if images.val else ("train", images.train)
    result = evaluate(training, loader, split)
    if not training.accelerator.is_main_process:
        return
    for name in graph.members:
        path = directory.nodes / f"{name}.safetensors"
        member = graph.member(name)
        export_node(member.model, path, member.mean, member.std)
    summary = _summary(training, result, split, time.perf_counter() - start)
    directory.write_summary(summary)
    show_result(
        summary,
        [
            ("recipe", str(directory.recipe)),
            ("metrics", str(directory.metrics)),
            ("summary", str(directory.summary)),
            ("weights", str(directory.nodes / "<node>.safetensors")),
            ("resume", f"{PROGRAM} --resume {directory.path}"),
        ],
    )


def _summary(training: Training, result: Metrics, split: str, seconds: float) -> dict[str, Any]:
    images, recipe = training.images, training.recipe
    return {
        "target": training.graph.target,
        "split": split,
        "nodes": {
            name: {top: result[f"{split}/{top}/{name}"] for top in ("top1", "top5")}
            for name in training.graph.members
        },
        "seed": recipe.train.seed,
        "epochs": training.epochs,
        "data": {
            "fingerprint": training.splits.fingerprint,
            "mean": images.mean,
            "std": images.std,
        },
        "processes": training.accelerator.num_processes,
        "device": str(training.accelerator.device),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "training_seconds": training.done.seconds,
        "wall_seconds": seconds,
    }


def _fail(lines: Sequence[str], code: int) -> int:
    # Every process comes here; one speaks. Without accelerate's state there is only one.
    if PartialState().is_main_process:
        for line in lines:
            print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
