"""The command line: every field of a recipe is a flag, made from the schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliImplicitFlag, CliPositionalArg

from ..errors import RecipeError
from ..graph.topology import LABEL, name_problem
from ..records.run_directory import read_seeds
from .data_config import DataConfig
from .flags import Flags, merged, parse_flags, timm_style
from .graph_config import EdgeConfig, GraphConfig, NodeConfig
from .images import data_problems
from .recipe import (
    Recipe,
    check_recipe,
    find_recipe,
    name_recipe,
    read_recipe,
)
from .section import Section
from .tracking_config import TrackingConfig
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
        seeds: Train with each of them, one after another; none: with the recipe's own.
    """

    recipe: Recipe
    name: str
    output_dir: Path | None
    resume: Path | None
    overwrite: bool
    dry_run: bool
    seeds: tuple[int, ...] = ()


class _TrainFlags(Flags):
    recipe: CliPositionalArg[str] = Field(
        "digits", description="path of a recipe, or name of a bundled one"
    )
    graph_from: str | None = Field(
        None,
        validation_alias=AliasChoices("graph-from", "graph_from"),
        description="recipe whose graph takes the place of this one's; or --graph",
    )
    resume: Path | None = Field(None, description="directory of a run to go on with")
    overwrite: CliImplicitFlag[bool] = Field(False, description="replace what is in output-dir")
    seeds: list[int] = Field(
        [], description="train with each of these seeds, one after another: --seeds 0 1 2"
    )


def parse_command(argv: Sequence[str], prog: str) -> Command:
    """Return what a command line asks for; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: How the program is started, for the help.

    Raises:
        RecipeError: All that is wrong with the recipe and its overrides.
    """
    arguments = _gates_named([_timm_style(argument) for argument in _joined(argv)])
    # Which nodes there are, and with them which flags, is known once the recipe is read.
    first = _without_nodes([a for a in arguments if a not in ("-h", "--help")])
    flags, _ = _parse(first, {}, prog)
    path = flags.resume / "recipe.yaml" if flags.resume else find_recipe(flags.recipe)
    if not path.is_file():
        raise RecipeError([f"resume: `{flags.resume}` is no run: it has no recipe.yaml."])
    values = read_recipe(path)
    if flags.graph_from:
        values["graph"] = read_recipe(find_recipe(flags.graph_from, "--graph")).get("graph")
    flags, overrides = _parse(arguments, values, prog)
    if flags.resume and (overrides or flags.model_fields_set - {"resume", "dry_run"}):
        raise RecipeError(
            ["resume: a run goes on with its own recipe, in its own place; give it nothing else."]
        )
    if len(set(flags.seeds)) < len(flags.seeds) or min(flags.seeds, default=0) < 0:
        given = " ".join(map(str, flags.seeds))
        raise RecipeError([f"seeds: should be 0 or more, each only once. Found {given}."])
    return Command(
        _checked(merged(values, overrides)),
        name_recipe(path),
        flags.output_dir,
        flags.resume,
        flags.overwrite,
        flags.dry_run,
        read_seeds(flags.resume) if flags.resume else tuple(flags.seeds),
    )


def _parse(
    arguments: Sequence[str], values: Mapping[str, Any], prog: str
) -> tuple[_TrainFlags, dict[str, Any]]:
    """Return the flags beside the recipe's own, and the recipe's as nested values."""
    given = parse_flags(arguments, _settings(values), prog)
    overrides = {key: given.pop(key) for key in Recipe.model_fields if key in given}
    return _TrainFlags.model_validate(given), overrides


def _timm_style(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    # --graph is taken: pydantic-settings would read the whole section from it.
    return timm_style("--graph-from" + equals + value if flag == "--graph" else argument)


def _joined(arguments: Iterable[str]) -> list[str]:
    """Return the arguments with the seeds, which are given one after another, as one."""
    joined: list[str] = []
    for argument in arguments:
        if argument.isdecimal() and len(joined) > 1 and joined[-2] == "--seeds":
            joined[-1] += f",{argument}"
        else:
            joined.append(argument)
    return joined


def _checked(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe, or raise RecipeError with all its problems, those of the data included."""
    try:
        return check_recipe(values)
    except RecipeError as error:
        raise RecipeError([*error.problems, *data_problems(values)]) from None


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


def _below(values: Any, key: str) -> Mapping[str, Any]:
    """Return what a recipe, which nobody has checked yet, has at a key, if that is a mapping."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return {str(name): value for name, value in found.items()} if isinstance(found, Mapping) else {}


def _settings(values: Mapping[str, Any]) -> type[BaseSettings]:
    """Return the settings with a flag for every field of this recipe, its values as defaults."""
    given = _below(_below(values, "graph"), "nodes")
    nodes = {name: node for name, node in given.items() if not name_problem(name)}
    graph = _section(
        "Graph",
        {"nodes": _section("Nodes", {name: _node(name, nodes) for name in nodes})},
        _valued(GraphConfig, _below(values, "graph")),
    )
    bases: Any = (_section("Flags", {"graph": graph}, Recipe), _TrainFlags)
    defaults: dict[str, Any] = {}
    sections: dict[str, type[Section]] = {
        "data": DataConfig,
        "train": TrainConfig,
        "tracking": TrackingConfig,
    }
    for name, section in sections.items():
        with suppress(ValidationError):  # said once the command line has had its word
            defaults[name] = (section, section.model_validate(values.get(name, {})))
    settings: type[BaseSettings] = create_model("Settings", __base__=bases, **defaults)
    return settings


def _node(name: str, nodes: Mapping[str, Any]) -> type[Section]:
    sources = [LABEL, *(other for other in nodes if other != name)]
    edges = _below(nodes[name], "learns_from")
    written = {source: edge for source, edge in edges.items() if isinstance(edge, Mapping)}
    written |= {source: {"gate": edge} for source, edge in edges.items() if source not in written}
    kinds = {source: _valued(EdgeConfig, written.get(source, {})) | str for source in sources}
    learns_from = _section("LearnsFrom", kinds)
    return _section("Node", {"learns_from": learns_from}, _valued(NodeConfig, nodes[name]))


def _valued(base: type[Section], values: Any) -> type[Section]:
    """Return a section with a recipe's values as its defaults, which the help shows."""
    fields: dict[str, Any] = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name in base.model_fields:
            field = copy(base.model_fields[name])
            field.default, field.default_factory = value, None
            fields[name] = (field.annotation, field)
    return create_model(base.__name__, __base__=base, **fields)


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
