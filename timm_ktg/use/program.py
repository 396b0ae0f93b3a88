"""Start and end of the programs that use a run: errors take one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import DataError, RecipeError, StorageError, located, one_line
from ..terminal import Parser, fail


def run_program(run: Callable[[], None]) -> int:
    """Run a program, and return its exit code.

    Args:
        run: The program.

    Returns:
        0; 1 if an image cannot be read or a file cannot be written; 2 if the command or the run is
        wrong; 130 if interrupted.
    """
    try:
        run()
        sys.stdout.flush()
    except RecipeError as error:
        return fail(error.problems, 2)
    except (DataError, StorageError) as error:
        return fail(str(error).splitlines(), 1)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail([one_line(error)], 1)
    except KeyboardInterrupt:
        return fail(["Interrupted."], 130)
    return 0


def run_parser(prog: str, description: str | None) -> Parser:
    """Return a parser of what all these programs take."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("--device", help="where to compute; by default an accelerator, if any")
    return parser


def device_of(name: str | None) -> torch.device:
    """Return the device of a name; None: the accelerator of this machine, or its CPU.

    Raises:
        RecipeError: There is no such device.
    """
    if name is None:
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    with located("--device"):
        device = torch.device(name)
        torch.zeros(1, device=device)
    return device
