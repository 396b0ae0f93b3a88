"""Flags of a command line, made from a schema: what the programs have in common."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import AliasChoices, Field
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ..errors import RecipeError, did_you_mean
from .recipe import parse_yaml


class Flags(BaseSettings):
    """Flags that every program has; nothing is taken from the environment."""

    model_config = SettingsConfigDict(
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        cli_parse_none_str="null",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing from environment variables, which happen to be called RESUME or so."""
        return (init_settings,)

    output_dir: Path | None = Field(
        None,
        validation_alias=AliasChoices("output-dir", "output_dir"),
        description="directory of all that is written; null: below runs",
    )
    dry_run: CliImplicitFlag[bool] = Field(
        False,
        validation_alias=AliasChoices("dry-run", "dry_run"),
        description="build and check everything, train nothing",
    )


def parse_flags(
    arguments: Sequence[str], settings: type[BaseSettings], prog: str
) -> dict[str, Any]:
    """Return the flags that are given, sections as nested values; `--help` prints and exits.

    Args:
        arguments: The arguments, without the program's name.
        settings: The flags.
        prog: How the program is started, for the help.

    Raises:
        RecipeError: There is no such flag.
    """
    source = CliSettingsSource[ArgumentParser](settings)
    parser = source.root_parser
    parser.prog = prog
    parser.usage = f"{prog} [RECIPE] [--section.field value ...]"
    plain = parser.format_help
    parser.format_help = lambda: _in_our_words(plain())  # type: ignore[method-assign]
    try:
        given = source(args=list(arguments))()
    except SettingsError as error:
        said = str(error).removeprefix("error parsing CLI: ")
        options = list(parser._option_string_actions)
        unknown = said.removeprefix("unrecognized arguments: ").split("=")[0].split(" ")[0]
        raise RecipeError([f"command line: {said}.{did_you_mean(unknown, options)}"]) from None
    return cast(dict[str, Any], _settled(given))


def timm_style(argument: str) -> str:
    """Return `--train.batch-size=3`, as timm's flags are written, as `--train.batch_size=3`."""
    flag, equals, value = argument.partition("=")
    if flag.startswith("--") and "." in flag:
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def _in_our_words(text: str) -> str:
    """Return the help without what pydantic-settings says of its own insides."""
    text = re.sub(r"\n  default: \S+ \(undefined\)\n", "\n", text)
    text = re.sub(r"\(ifdef:(\s+)required\)", r"(in every\1recipe)", text)
    return re.sub(r"\(default:(\s+)None\)", r"(default:\1null)", text)


def _settled(value: Any, free: bool = False) -> Any:
    """Return the values as a recipe's file would give them.

    pydantic-settings makes [None] of `null` for a list, and leaves the arguments of `..._kwargs`,
    whose types no schema tells, as texts.
    """
    if isinstance(value, Mapping):
        return {key: _settled(item, free or key.endswith("_kwargs")) for key, item in value.items()}
    if free and isinstance(value, str):
        return parse_yaml(value)
    return None if value == [None] else value


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the overrides laid over them, section by section."""
    result = dict(values)
    for key, value in overrides.items():
        below = result.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):
            below = {"gate": below}  # an edge that is written as a bare word
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result
