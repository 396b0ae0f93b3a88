"""The program: `accelerate launch -m timm_ktg.search [RECIPE] [--section.field value ...]`."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from optuna.exceptions import StorageInternalError

from ..errors import DataError, RecipeError, located, one_line
from ..recipe.search_command import SearchCommand, parse_search
from ..records.run_directory import RUNS
from ..train.program import PATIENCE, choose_device, create_accelerator, resolved, run_program
from .final import finish
from .methods import build_method
from .processes import WorkerProcesses
from .recipes import candidates_recipe
from .space import build_choices
from .storage import check_storage
from .study import STOPS, StoppedError, say
from .tracking import search_tracking_problems
from .weights import NoWeightsError
from .worker import check_candidates, check_directory, join_search

GOES_ON = "The same command again goes on with the search."
PROGRAM = "accelerate launch -m timm_ktg.search"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker of a search.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, 1 if the search cannot go on, 2 if what was asked for is wrong, 130 if it
        was interrupted.
    """
    return run_program(
        lambda: _parsed(sys.argv[1:] if argv is None else argv),
        _run,
        GOES_ON,
        (NoWeightsError, StorageInternalError, StoppedError),
        timeout=PATIENCE,
    )


def _parsed(argv: Sequence[str]) -> SearchCommand:
    command = parse_search(argv, PROGRAM)
    choose_device(command.recipe.train.device)
    check_storage(command.recipe.search.storage)
    problems = search_tracking_problems(command.recipe.tracking)
    if problems:
        raise RecipeError(problems)
    return command


def _run(command: SearchCommand) -> None:
    try:
        run(command)
    except STOPS as error:  # no room, no permission, a folder that is gone, a damaged image
        raise StoppedError(f"{_said(error).rstrip('.')}. {GOES_ON}") from error


def _said(error: OSError | DataError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or one_line(error)


def run(command: SearchCommand) -> None:
    """Lead a worker's processes, or follow.

    Raises:
        RecipeError: What was asked for is wrong.
    """
    accelerator = create_accelerator(candidates_recipe(command.recipe))
    recipe = resolved(command.recipe, accelerator)
    logging.getLogger("timm_ktg.graph").setLevel(logging.ERROR)  # many trials leave nodes out
    processes = WorkerProcesses()
    # What is there now, torch and timm, need not be looked at when garbage is collected.
    gc.freeze()
    if not accelerator.is_main_process:
        processes.follow()
        accelerator.end_training()
        return
    name = recipe.search.study or command.name
    directory = command.output_dir or Path(RUNS, name)
    try:
        check_directory(directory, name)
        if command.dry_run:
            check_candidates(recipe, processes)
            with located("search"):
                choices, method = build_choices(recipe.search), build_method(recipe)
            say(f"Dry run: {choices.size:,} ways to choose, all models built.")
            say(method.title)
        else:
            worker = join_search(recipe, name, directory, processes, command.resume, command.lost)
            finish(worker, worker.search())
    except (RecipeError, NoWeightsError):
        processes.dismiss()
        raise
    finally:
        gc.unfreeze()
    # After any other error the other processes may be in the middle of a step: this process ends,
    # and the launcher then ends them.
    processes.dismiss()
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
