"""All programs as one command: `timm-ktg train|search|...`, or `python -m timm_ktg ...`.

Each is the same as `python -m timm_ktg.<program>`; several processes still need
`accelerate launch -m timm_ktg.<program>`.
"""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import RecipeError, did_you_mean
from .recipe.flags import flags_of
from .recipe.recipe import Recipe, bundled_recipes, find_recipe
from .recipe.search_config import SearchRecipe
from .recipe.section import Section
from .terminal import fail

PROGRAMS = {
    "train": "train the graph of a recipe",
    "search": "search for the best graph",
    "suite": "train and compare many methods with many seeds",
    "draw": "draw a graph",
    "review": "compare runs, write a report",
    "validate": "measure the nodes of a run",
    "predict": "classify images with a run",
    "export": "export a run's target to ONNX or torch.export",
}
_SCHEMAS: dict[str, type[Section]] = {"train": Recipe, "search": SearchRecipe}
_MODULES = ("validate", "predict", "export")  # the others are packages
SHELLS = ("bash", "zsh", "tcsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program, or show what is bundled.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The program's exit code; otherwise 0, or 2 if what was asked for is wrong.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in PROGRAMS:
        name = given[0] if given[0] in _MODULES else f"{given[0]}.__main__"
        program: Any = import_module(f".{name}", __package__)
        code: int = program.main(given[1:])
        return code
    names = [*PROGRAMS, "recipes", "completion"]
    if given and not given[0].startswith("-") and given[0] not in names:
        hint = did_you_mean(given[0], names)
        return fail([f"timm-ktg: should be one of {', '.join(names)}. Found {given[0]}.{hint}"], 2)
    arguments = build_parser().parse_args(given)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RecipeError, OSError) as error:
        return fail(list(getattr(error, "problems", [str(error)])), 2)
    return 0


def build_parser(recipes_named: Sequence[str] | None = None) -> ArgumentParser:
    """Return the parser of the whole command, which the completion of shells is made from.

    Args:
        recipes_named: Names to complete; None: any, because a wrong one has its own message.
    """
    parser = ArgumentParser(prog="timm-ktg", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, said in PROGRAMS.items():
        program = commands.add_parser(name, help=said, add_help=False)
        program.add_argument("arguments", nargs="*")
        for flag in flags_of(_SCHEMAS[name]) if name in _SCHEMAS else ():
            program.add_argument(flag)
    recipes = commands.add_parser("recipes", help="list, show or copy the bundled recipes")
    actions = recipes.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="name and first line of each").set_defaults(run=_list)
    show = actions.add_parser("show", help="print one")
    copy = actions.add_parser("copy", help="copy one, to change it")
    for each in (show, copy):
        each.add_argument("name", choices=recipes_named, help="such as presets/kd")
    show.set_defaults(run=_show)
    copy.add_argument("file", nargs="?", type=Path, help="default: its name, in this folder")
    copy.set_defaults(run=_copy)
    completion = commands.add_parser("completion", help="print a script that completes commands")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_complete)
    return parser


def _list(given: Namespace) -> None:
    recipes = bundled_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        print(f"{name:<{width}}  {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


def _show(given: Namespace) -> None:
    print(find_recipe(given.name).read_text(encoding="utf-8"), end="")


def _copy(given: Namespace) -> None:
    source = find_recipe(given.name)
    file = given.file or Path(source.name)
    if file.exists():
        raise RecipeError([f"recipes copy: {file} exists; give another name."])
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, file)
    print(f"recipe     {file}")


def _complete(given: Namespace) -> None:
    try:
        import shtab
    except ImportError:
        said = "completion: needs the package shtab: pip install 'timm_ktg[completion]'."
        raise RecipeError([said]) from None
    print(shtab.complete(build_parser(list(bundled_recipes())), given.shell))


if __name__ == "__main__":
    sys.exit(main())
