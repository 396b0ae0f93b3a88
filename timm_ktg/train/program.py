"""How a program begins and ends: what is wrong costs a line each, on all processes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ContractError, RecipeError, collected
from ..terminal import fail
from .allocator import keep_freed_memory
from .training import problems_everywhere

C = TypeVar("C")


def run_program(
    parse: Callable[[], C],
    run: Callable[[C], None],
    interrupted: str,
    failures: tuple[type[Exception], ...],
    **group: Any,
) -> int:
    """Read the command line on every process, run the program, and return its exit code.

    Args:
        parse: Reads the command line; raises RecipeError with all that is wrong with it.
        run: Runs what was read.
        interrupted: What to say after Ctrl-C.
        failures: Errors after which the program cannot go on.
        group: Arguments of the group of processes; see `problems_everywhere`.

    Returns:
        0, 1 after one of the failures, 2 if what was asked for is wrong, 130 if interrupted.
    """
    problems: list[str] = []
    keep_freed_memory()
    try:
        with collected(problems):
            command = parse()
        problems = problems_everywhere(problems, **group)
        if problems:
            raise RecipeError(problems)
        run(command)
    except RecipeError as error:
        return fail(error.problems, 2)
    except ContractError as error:
        return fail([str(error)], 2)
    except failures as error:
        return fail([str(error)], 1)
    except KeyboardInterrupt:
        return fail([f"Interrupted. {interrupted}"], 130)
    return 0
