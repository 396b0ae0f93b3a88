"""Start and end of a program: errors take one line each, and all processes stop together."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import get_int_from_env, parse_flag_from_env

from ..errors import (
    ContractError,
    DataError,
    RecipeError,
    StorageError,
    collected,
    located,
    one_line,
    said,
)
from ..recipe.recipe import Recipe
from ..recipe.search_config import SearchRecipe
from ..terminal import fail
from .allocator import keep_freed_memory
from .hardware import gains_by_bf16
from .training import problems_everywhere

# While the first process waits for other workers, the rest wait for it.
PATIENCE = timedelta(days=30)

C = TypeVar("C")
R = TypeVar("R", Recipe, SearchRecipe)


def share_imports() -> None:
    """Let this process share what it has imported with the workers that load images.

    They are forked, so they share all memory until one writes into it. A garbage collection writes
    into every object that it looks at: after one, a process that streams images held 130 MiB more
    (n=1, torch 2.15.0, commit 19ad456). Call it in a program only: garbage that is there now stays.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)  # nanobind, at the end, complains of what is still there


def run_program(
    parse: Callable[[], C],
    run: Callable[[C], None],
    interrupted: str,
    failures: tuple[type[Exception], ...],
    **group: Any,
) -> int:
    """Read the command line on every process, run the program, and return its exit code.

    Args:
        parse: Reads the command line; raises RecipeError with all its problems.
        run: Runs the command.
        interrupted: The message after Ctrl-C.
        failures: Errors after which the program cannot go on.
        group: Arguments of the process group; see `problems_everywhere`.

    Returns:
        0, 1 after one of the failures or if a file cannot be written, 2 if the command is wrong,
        130 if interrupted.
    """
    problems: list[str] = []
    stops: tuple[type[Exception], ...] = (DataError, *failures)
    keep_freed_memory()
    try:
        with collected(problems), said("recipe"):
            command = parse()
        problems = problems_everywhere(problems, **group)
        if problems:
            raise RecipeError(problems)
        run(command)
    except RecipeError as error:
        return fail(error.problems, 2)
    except ContractError as error:
        return fail([str(error)], 2)
    except stops as error:
        return fail([str(error)], 1)
    except OSError as error:
        return fail([str(error) if isinstance(error, StorageError) else one_line(error)], 1)
    except KeyboardInterrupt:
        return fail([f"Interrupted. {interrupted}"], 130)
    return 0


def choose_device(name: str | None) -> None:
    """Let accelerate use a device. Call it first of all, because accelerate chooses only once.

    Args:
        name: `train.device`; None: accelerate chooses by itself.

    Raises:
        RecipeError: This machine has no such device, or several processes would share it.
    """
    if name is None:
        return
    device = torch.device(name)
    with located("train.device"):
        torch.zeros(1, device=device)
        if device.index is not None and get_int_from_env(["WORLD_SIZE"], 1) > 1:
            raise ValueError(f"should have no number with several processes. Found {name}.")
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = name


def create_accelerator(recipe: Recipe) -> Accelerator:
    """Return the accelerator for a recipe.

    Raises:
        RecipeError: This machine does not support the precision, or accelerate has another device.
    """
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS begins
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
    parts = get_int_from_env(["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"], 1)
    if parts != 1:  # accelerate would divide every gradient by it
        said = f"should not be set; use train.grad_accum_steps instead. Found {parts}."
        raise RecipeError([f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS: {said}"])
    with located("train.mixed_precision"):
        accelerator = Accelerator(mixed_precision=recipe.train.mixed_precision or _precision())
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("fp16 needs an accelerator. Found a CPU, where bf16 works.")
    wanted = recipe.train.device
    if wanted is not None and torch.device(wanted).type != accelerator.device.type:
        said = f"should be the device of the process, {accelerator.device}. Found {wanted}."
        raise RecipeError([f"train.device: {said}"])
    return accelerator


def _precision() -> str | None:
    """Return bf16 on a CPU that gains by it, if nobody chose a precision; None: accelerate's.

    accelerate's launcher sets `no` if its user chose nothing, so `no` from there counts as open.
    Five seeds showed no clear loss of accuracy (recipes/evidence/precision.md: four intervals, all
    with 0 inside, the widest from -2.2 to +0.9 points).
    """
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if chosen != "no" or not on_cpu or is_initialized():
        return None
    return "bf16" if gains_by_bf16() else None


def resolved(recipe: R, accelerator: Accelerator) -> R:
    """Fill in the precision and the memory format that a recipe leaves open.

    On a CPU, a step in channels-last took 0.78 of the time of one in the default format (quartiles
    0.75 to 0.80, n=12; resnet20_cifar, batch 64, 2 cores of an AMD EPYC, torch 2.15.0, commit
    7291ff6). On a GPU, a recorded update of the paper's graph of four nodes took 0.60 in bf16
    (10.90 ms against 18.03; 7 rounds of 20, quartiles within 0.1 %; one H100, torch 2.11.0, timm
    1.0.31, commit 0680cca); of ResNet-32 alone 0.60, in float32 0.79. On other accelerators it has
    not been measured.
    """
    channels_last = recipe.train.channels_last
    if channels_last is None:
        channels_last = accelerator.device.type in ("cpu", "cuda")
    chosen = {"mixed_precision": accelerator.mixed_precision, "channels_last": channels_last}
    train = recipe.train.model_copy(update=chosen)
    return recipe.model_copy(update={"train": train})
