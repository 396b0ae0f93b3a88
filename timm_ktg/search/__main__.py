"""The search: `accelerate launch -m timm_ktg.search [RECIPE] [--section.field value ...]`."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from optuna.exceptions import StorageInternalError

from ..errors import RecipeError
from ..recipe.search_command import SearchCommand, parse_search
from ..records.run_directory import RUNS
from ..train.program import create_accelerator, resolved, run_program
from .program import Worker, check_recipe_of
from .sampler import build_choices
from .site import say
from .team import CheckTask, Team
from .tracking import search_tracking_problems
from .weights import NoWeightsError

# While the first process waits for other workers, the rest wait for it.
PATIENCE = timedelta(days=30)
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
        run,
        "The same command again goes on with the search.",
        (NoWeightsError, StorageInternalError),
        timeout=PATIENCE,
    )


def _parsed(argv: Sequence[str]) -> SearchCommand:
    command = parse_search(argv, PROGRAM)
    problems = search_tracking_problems(command.recipe.tracking)
    if problems:
        raise RecipeError(problems)
    return command


def run(command: SearchCommand) -> None:
    """Lead a worker's processes, or follow.

    Raises:
        RecipeError: What was asked for is wrong.
    """
    accelerator = create_accelerator(check_recipe_of(command.recipe))
    recipe = resolved(command.recipe, accelerator)
    logging.getLogger("timm_ktg.graph").setLevel(logging.ERROR)  # many trials leave nodes out
    team = Team()
    # Collecting garbage after a trial need not look at what is there now, torch and timm.
    gc.freeze()
    if not accelerator.is_main_process:
        team.follow()
        accelerator.end_training()
        return
    name = recipe.search.study or command.name
    directory = command.output_dir or Path(RUNS, name)
    try:
        if command.dry_run:
            team.check(CheckTask(check_recipe_of(recipe)))
            say(f"Dry run: {build_choices(recipe.search).size:,} ways to choose, all models built.")
        else:
            Worker(recipe, name, directory, team).run(command.resume)
    except (RecipeError, NoWeightsError):
        team.dismiss()
        raise
    finally:
        gc.unfreeze()
    # After any other error the others may be in the middle of a step: this process ends, and with
    # it, by the launcher, they do.
    team.dismiss()
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
