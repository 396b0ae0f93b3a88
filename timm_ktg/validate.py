"""Measure the nodes of a run: top-1, top-5, loss, calibration, classes, confusion, agreement."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import RecipeError, did_you_mean
from .recipe.data_config import DataConfig
from .recipe.flags import Flag, overridden, section_groups, split_flags
from .recipe.recipe import Recipe, check_recipe
from .recipe.trained import TrainedRun, open_run
from .terminal import Parser, printable
from .use.program import device_of, run_parser, run_program
from .use.show import save_validation, show_validation
from .use.validation import SPLITS, validate

# The fields of `data` that choose images; all others are as in the run.
CHOICES = (
    *("dataset", "dataset_config", "input_key", "target_key", "train_split", "val_split"),
    *("test_split", "holdout", "split_seed", "images_per_class", "class_map", "workers"),
)
_FLAGS = ", ".join(f"--data.{name.replace('_', '-')}" for name in CHOICES)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the nodes of a run.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code; see `run_program`.
    """
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    own, flags = split_flags(argv)
    given = _parser().parse_args(own)
    run = open_run(given.run)
    data, split = _data_of(run, flags), given.split or run.result.split
    found = validate(run, data, split, given.node, device_of(given.device))
    show_validation(found, run.recipe.graph.target)
    for path in save_validation(found, given.output) if given.output else ():
        print(printable(path))


def _parser() -> Parser:
    parser = run_parser("python -m timm_ktg.validate", __doc__)
    parser.usage = "%(prog)s RUN [--data.dataset ...] [--node NAME] [--split SPLIT] [-o FOLDER]"
    parser.epilog = f"Other images, as in a recipe: {_FLAGS}."
    parser.add_argument("--node", help="only this node; by default all, and all together")
    parser.add_argument("--split", choices=SPLITS, help="by default the one of the run's result")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER",
        help="folder for validation.json and tables as CSV, such as RUN/validation",
    )  # fmt: skip
    return parser


def _data_of(run: TrainedRun, flags: Sequence[Flag]) -> DataConfig:
    """Return the run's data with the flags applied.

    Raises:
        RecipeError: A flag is wrong, or says how images are prepared.
    """
    for name, _ in flags:
        section, _, field = name.partition(".")
        if section != "data" or field not in CHOICES:
            near = did_you_mean(field, CHOICES).replace("`", "`--data.", 1)
            raise RecipeError(
                [f"command line: --{name} should choose images, as do {_FLAGS}.{near}"]
            )
    values = run.recipe.model_dump(mode="json")
    groups = {"data": section_groups(Recipe, values)["data"]}
    return check_recipe(overridden(values, flags, groups)).data


if __name__ == "__main__":
    sys.exit(main())
