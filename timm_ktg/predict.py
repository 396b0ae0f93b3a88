"""Predict the classes of images with a node of a run."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from .errors import RecipeError
from .recipe.trained import open_run
from .records.files import write_whole
from .terminal import Parser, fail, printable
from .use.prediction import Prediction, find_images, predict
from .use.program import device_of, run_parser, run_program
from .use.show import to_csv


def main(argv: Sequence[str] | None = None) -> int:
    r"""Predict the classes of images.

    In the name of an image, bytes that are not UTF-8 are written as escapes such as `\udce9`.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code; see `run_program`. It is 1 as well if an image cannot be read; those that can
        are predicted all the same.
    """
    problems: list[str] = []
    code = run_program(lambda: problems.extend(_run(argv)))
    return fail(problems, 1) if problems else code


def _run(argv: Sequence[str] | None) -> list[str]:
    """Predict, and return a line for each image that cannot be read."""
    given = _parser().parse_args(argv)
    folder = given.output.parent if given.output else Path()
    if not folder.is_dir():
        said = f"output: {given.output} should be in a folder that exists. Found none."
        raise RecipeError([said])
    run, files = open_run(given.run), find_images(given.images)
    model, device = run.predictor(given.node), device_of(given.device)
    predictions, problems = predict(model, run.transform(), files, given.top, device)
    text = (_as_json if given.format == "json" else _as_csv)(predictions)
    if given.output:
        write_whole(given.output, text)
    else:
        sys.stdout.write(text)
    return problems


def _parser() -> Parser:
    parser = run_parser("python -m timm_ktg.predict", __doc__)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images"
    )
    parser.add_argument("--node", help="the node that predicts; by default the target")
    parser.add_argument("--top", type=_count, default=5, help="classes for each image (default: 5)")
    parser.add_argument("--format", choices=("csv", "json"), default="csv", help="default: csv")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="by default the terminal")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"should be 1 or more. Found {text}")
    return int(text)


def _as_csv(predictions: Sequence[Prediction]) -> str:
    return to_csv(
        ("image", "rank", "class", "probability"),
        (
            (printable(each.image), rank, name, f"{probability:.6g}")
            for each in predictions
            for rank, (name, probability) in enumerate(each.classes, start=1)
        ),
    )


def _as_json(predictions: Sequence[Prediction]) -> str:
    values = [
        {
            "image": str(each.image),
            "classes": [{"class": name, "probability": value} for name, value in each.classes],
        }
        for each in predictions
    ]
    return json.dumps(values, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
