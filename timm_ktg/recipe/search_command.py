"""The command line of a search."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .flags import COMMON, Options, Program, overridden, section_groups
from .recipe import check_section, find_recipe, name_recipe, read_recipe
from .search_config import SearchRecipe

_OPTIONS: Options = {
    **COMMON,
    ("--resume",): {
        "action": BooleanOptionalAction,
        "help": "stop unless the study exists; without this flag it is made where there is none",
    },
}


@dataclass(frozen=True)
class SearchCommand:
    """What the command line of a search asks for.

    Args:
        recipe: The recipe with its overrides.
        name: What the study is called, if the recipe does not say.
        output_dir: Where the search goes; None: `runs/<study>`.
        resume: Whether the study must exist already.
        dry_run: Build and check, train nothing.
    """

    recipe: SearchRecipe
    name: str
    output_dir: Path | None
    resume: bool
    dry_run: bool


def parse_search(argv: Sequence[str], prog: str) -> SearchCommand:
    """Return what a command line asks for; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: How the program is started, for the help.

    Raises:
        RecipeError: All that is wrong with the recipe and its overrides.
    """
    program = Program(prog, "digits-search", SearchRecipe, _OPTIONS)
    given, flags = program.parse(argv)
    path = find_recipe(given.get("recipe", program.recipe))
    values = read_recipe(path)
    groups = section_groups(SearchRecipe, values)
    if "help" in given:
        program.show_help(groups)
    return SearchCommand(
        check_section(SearchRecipe, overridden(values, flags, groups)),
        name_recipe(path),
        given.get("output_dir"),
        given.get("resume", False),
        given.get("dry_run", False),
    )
