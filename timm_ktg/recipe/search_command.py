"""The command line of a search."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecipeError
from .flags import COMMON, Options, Program, overridden, section_groups
from .recipe import check_section, find_recipe, name_recipe, read_recipe
from .search_config import SearchRecipe

_OPTIONS: Options = {
    **COMMON,
    ("--resume",): {
        "action": BooleanOptionalAction,
        "help": "stop unless the study exists; without this flag, a missing study is created",
    },
    ("--lost",): {
        "action": "append",
        "metavar": "HOST",
        "help": "the workers of this host died; for a journal that several hosts see",
    },
}


@dataclass(frozen=True)
class SearchCommand:
    """A parsed command line of a search.

    Args:
        recipe: The recipe with its overrides.
        name: Name of the study, unless the recipe gives one.
        output_dir: Directory of the search; None: `runs/<study>`.
        resume: Whether the study must exist already.
        dry_run: Whether to build and check only, without training.
        lost: Hosts whose workers died.
    """

    recipe: SearchRecipe
    name: str
    output_dir: Path | None
    resume: bool
    dry_run: bool
    lost: tuple[str, ...] = ()


def parse_search(argv: Sequence[str], prog: str) -> SearchCommand:
    """Parse a command line; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: The command that starts the program, for the help.

    Raises:
        RecipeError: The recipe or an override is wrong; lists all problems.
    """
    program = Program(prog, "digits-search", SearchRecipe, _OPTIONS)
    given, flags = program.parse(argv)
    name = given.get("recipe", program.recipe)
    path = find_recipe(name)
    values = read_recipe(path)
    groups = section_groups(SearchRecipe, values)
    if "help" in given or "help_all" in given:
        program.show_help(groups, "help_all" in given)
    if "graph" in values and "search" not in values:
        raise RecipeError(
            [
                "graph: this recipe has a graph to train, and no search. Train it: accelerate "
                f"launch -m timm_ktg.train {name}"
            ]
        )
    return SearchCommand(
        check_section(SearchRecipe, overridden(values, flags, groups)),
        name_recipe(path),
        given.get("output_dir"),
        given.get("resume", False),
        given.get("dry_run", False),
        tuple(given.get("lost", ())),
    )
