"""The command line of a search."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliImplicitFlag, CliPositionalArg

from .flags import Flags, merged, parse_flags, timm_style
from .recipe import check_section, find_recipe, name_recipe, read_recipe
from .search_config import SearchRecipe


@dataclass(frozen=True)
class SearchCommand:
    """What the command line of a search asks for.

    Args:
        recipe: The recipe with its overrides.
        name: What the study is called, if the recipe does not say.
        output_dir: Where the search goes; None: `runs/<study>`.
        resume: The study should be there already.
        dry_run: Build and check, train nothing.
    """

    recipe: SearchRecipe
    name: str
    output_dir: Path | None
    resume: bool
    dry_run: bool


class _SearchFlags(Flags):
    recipe: CliPositionalArg[str] = Field(
        "digits-search", description="path of a recipe, or name of a bundled one"
    )
    resume: CliImplicitFlag[bool] = Field(
        False, description="be sure to go on with a study that is there; without it one is made"
    )


def parse_search(argv: Sequence[str], prog: str) -> SearchCommand:
    """Return what a command line asks for; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: How the program is started, for the help.

    Raises:
        RecipeError: All that is wrong with the recipe and its overrides.
    """
    arguments = [timm_style(argument) for argument in argv]
    plain = [argument for argument in arguments if argument not in ("-h", "--help")]
    first = _SearchFlags.model_validate(_given(plain, {}, prog)[0])
    path = find_recipe(first.recipe)
    values = read_recipe(path)
    given, overrides = _given(arguments, values, prog)
    flags = _SearchFlags.model_validate(given)
    recipe = check_section(SearchRecipe, merged(values, overrides))
    return SearchCommand(recipe, name_recipe(path), flags.output_dir, flags.resume, flags.dry_run)


def _given(
    arguments: Sequence[str], values: dict[str, Any], prog: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags beside the recipe's own, and the recipe's as nested values."""
    given = parse_flags(arguments, _settings(values), prog)
    overrides = {key: given.pop(key) for key in SearchRecipe.model_fields if key in given}
    return given, overrides


def _settings(values: dict[str, Any]) -> type[BaseSettings]:
    """Return the settings with a flag for every field, this recipe's values as defaults."""
    defaults: dict[str, Any] = {}
    for name, field in SearchRecipe.model_fields.items():
        section: Any = field.annotation
        with suppress(ValidationError):  # said once the command line has had its word
            defaults[name] = (section, section.model_validate(values.get(name, {})))
    bases: Any = (SearchRecipe, _SearchFlags)
    settings: type[BaseSettings] = create_model("Settings", __base__=bases, **defaults)
    return settings
