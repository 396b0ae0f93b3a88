"""The command line: every field of a recipe is a flag, made from the schema."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import AliasChoices, Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    CliPositionalArg,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ..errors import RecipeError, did_you_mean
from ..topology import LABEL, name_problem
from .data_config import DataConfig
from .graph_config import EdgeConfig, GraphConfig, NodeConfig
from .images import data_problems
from .recipe import (
    Recipe,
    check_recipe,
    find_recipe,
    name_recipe,
    parse_yaml,
    read_recipe,
)
from .section import Section
from .train_config import TrainConfig

_NODES = "--graph.nodes."
_EDGE = r"^--graph\.nodes\.\w+\.learns_from\.\w+$"


@dataclass(frozen=True)
class Command:
    """What the command line asks for.

    Args:
        recipe: The recipe with its overrides.
        name: What the run is called.
        output_dir: Where the run goes; None: the next free one below `runs`.
        resume: Directory of a run to go on with.
        overwrite: Replace what is at `output_dir`.
        dry_run: Build and check, train nothing.
    """

    recipe: Recipe
    name: str
    output_dir: Path | None
    resume: Path | None
    overwrite: bool
    dry_run: bool


class _Flags(BaseSettings):
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

    recipe: CliPositionalArg[str] = Field(
        "digits", description="path of a recipe, or name of a bundled one"
    )
    output_dir: Path | None = Field(
        None,
        validation_alias=AliasChoices("output-dir", "output_dir"),
        description="directory of the run; null: the next free one below runs",
    )
    graph_from: str | None = Field(
        None,
        validation_alias=AliasChoices("graph-from", "graph_from"),
        description="recipe whose graph takes the place of this one's; or --graph",
    )
    resume: Path | None = Field(None, description="directory of a run to go on with")
    overwrite: CliImplicitFlag[bool] = Field(False, description="replace what is in output-dir")
    dry_run: CliImplicitFlag[bool] = Field(
        False,
        validation_alias=AliasChoices("dry-run", "dry_run"),
        description="build and check everything, train nothing",
    )


def parse_command(argv: Sequence[str], prog: str) -> Command:
    """Return what a command line asks for; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: How the program is started, for the help.

    Raises:
        RecipeError: All that is wrong with the recipe and its overrides.
    """
    arguments = _gates_named([_timm_style(argument) for argument in argv])
    # Which nodes there are, and with them which flags, is known once the recipe is read.
    flags, _ = _parse(_without_nodes([a for a in arguments if a not in ("-h", "--help")]), {}, prog)
    path = flags.resume / "recipe.yaml" if flags.resume else find_recipe(flags.recipe)
    if not path.is_file():
        raise RecipeError([f"resume: `{flags.resume}` is no run: it has no recipe.yaml."])
    values = read_recipe(path)
    if flags.graph_from:
        values["graph"] = read_recipe(find_recipe(flags.graph_from)).get("graph")
    flags, overrides = _parse(arguments, values, prog)
    if flags.resume and (overrides or flags.model_fields_set - {"resume", "dry_run"}):
        raise RecipeError(
            ["resume: a run goes on with its own recipe, in its own place; give it nothing else."]
        )
    return Command(
        _checked(_merged(values, overrides)),
        name_recipe(path),
        flags.output_dir,
        flags.resume,
        flags.overwrite,
        flags.dry_run,
    )


def _checked(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe, or raise RecipeError with all its problems, those of the data included."""
    try:
        return check_recipe(values)
    except RecipeError as error:
        raise RecipeError([*error.problems, *data_problems(values)]) from None


def _timm_style(argument: str) -> str:
    """Return `--train.batch-size=3`, as timm's flags are written, as `--train.batch_size=3`."""
    flag, equals, value = argument.partition("=")
    if flag == "--graph":  # taken: pydantic-settings would read the whole section from it
        flag = "--graph-from"
    if flag.startswith("--") and "." in flag:
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def _gates_named(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with an edge that is given a bare word, as in a recipe, as its gate."""
    named = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = argument.partition("=")
        if re.match(_EDGE, flag) and not (value if equals else following).startswith("{"):
            flag += ".gate"
        named.append(flag + equals + value)
    return named


def _without_nodes(arguments: Iterable[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        is_node = argument.startswith(_NODES)
        if not (skip or is_node):
            kept.append(argument)
        skip = is_node and "=" not in argument
    return kept


def _node_names(values: Mapping[str, Any]) -> list[str]:
    graph = values.get("graph")
    nodes = graph.get("nodes") if isinstance(graph, Mapping) else None
    names = [str(name) for name in nodes] if isinstance(nodes, Mapping) else []
    return [name for name in names if not name_problem(name)]


def _parse(
    arguments: Sequence[str], values: Mapping[str, Any], prog: str
) -> tuple[_Flags, dict[str, Any]]:
    """Return the flags beside the recipe's own, and the recipe's as nested values."""
    source = CliSettingsSource[ArgumentParser](_settings(values))
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
    overrides = {key: given.pop(key) for key in Recipe.model_fields if key in given}
    return _Flags.model_validate(given), cast(dict[str, Any], _settled(overrides))


def _in_our_words(text: str) -> str:
    """Return the help without what pydantic-settings says of its own insides."""
    text = re.sub(r"\n  default: \S+ \(undefined\)\n", "\n", text)
    text = re.sub(r"\(ifdef:(\s+)required\)", r"(in every\1recipe)", text)
    return re.sub(r"\(default:(\s+)None\)", r"(default:\1null)", text)


def _settings(values: Mapping[str, Any]) -> type[BaseSettings]:
    """Return the settings with a flag for every field of this recipe, its values as defaults."""
    nodes = _node_names(values)
    graph = _section(
        "Graph",
        {"nodes": _section("Nodes", {name: _node(name, nodes) for name in nodes})},
        GraphConfig,
    )
    bases: Any = (_section("Flags", {"graph": graph}, Recipe), _Flags)
    defaults: dict[str, Any] = {}
    for name, section in (("data", DataConfig), ("train", TrainConfig)):
        with suppress(ValidationError):  # said once the command line has had its word
            defaults[name] = (section, section.model_validate(values.get(name, {})))
    settings: type[BaseSettings] = create_model("Settings", __base__=bases, **defaults)
    return settings


def _node(name: str, nodes: Sequence[str]) -> type[Section]:
    sources = [LABEL, *(other for other in nodes if other != name)]
    learns_from = _section("LearnsFrom", dict.fromkeys(sources, EdgeConfig | str))
    return _section("Node", {"learns_from": learns_from}, NodeConfig)


def _section(name: str, fields: Mapping[str, Any], base: type[Section] = Section) -> type[Section]:
    """Return a section with more fields; aliases, because a node may be called `copy` or `json`."""
    extra = {
        key if key in base.model_fields else f"field_{index}": (
            kind,
            Field(None, validation_alias=key),
        )
        for index, (key, kind) in enumerate(fields.items())
    }
    return create_model(name, __base__=base, **extra)  # type: ignore[call-overload, no-any-return]


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


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the overrides laid over them, section by section."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):
            below = {"gate": below}  # an edge that is written as a bare word
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged
