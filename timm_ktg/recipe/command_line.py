"""The command line of a training: every field of a recipe is a flag."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..graph.topology import LABEL
from ..records.run_directory import read_seeds
from .flags import COMMON, Flag, Group, Options, Program, below, overridden, section_groups
from .graph_flags import restructured
from .node_config import KINDS, EdgeConfig, NodeConfig, from_word, kind_of
from .recipe import (
    Recipe,
    check_recipe,
    find_recipe,
    name_recipe,
    read_recipe,
)
from .resume import resumed_recipe
from .splits import data_problems
from .trained import values_to_start_from


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.strip("[]").split(",")]
    except ValueError:
        raise ArgumentTypeError(f"should be whole numbers. Found {text}") from None


_OPTIONS: Options = {
    **COMMON,
    ("--graph", "--graph-from"): {"help": "recipe whose graph replaces this one's"},
    ("--resume",): {"type": Path, "help": "directory of a run to resume"},
    ("--from",): {
        "type": Path,
        "help": "finished run whose recipe and weights a new run starts from, with a new schedule",
    },
    ("--overwrite",): {"action": BooleanOptionalAction, "help": "replace the run in output-dir"},
    ("--seeds",): {
        "action": "extend",
        "type": _seeds,
        "help": "train with each of these seeds, one after another: --seeds 0 1 2",
    },
}


@dataclass(frozen=True)
class Command:
    """A parsed command line.

    Args:
        recipe: The recipe with its overrides.
        name: Name of the run.
        output_dir: Directory of the run; None: the next free one below `runs`.
        resume: Directory of a run to resume.
        overwrite: Whether to replace the run at `output_dir`.
        dry_run: Whether to build and check only, without training.
        seeds: Seeds to train with, one after another; empty: the recipe's own.
        overridden: Whether a flag changes a field of the recipe.
    """

    recipe: Recipe
    name: str
    output_dir: Path | None
    resume: Path | None
    overwrite: bool
    dry_run: bool
    seeds: tuple[int, ...] = ()
    overridden: bool = False


def parse_command(argv: Sequence[str], prog: str) -> Command:
    """Parse a command line; `--help` prints the help and exits.

    Args:
        argv: The arguments, without the program's name.
        prog: The command that starts the program, for the help.

    Raises:
        RecipeError: The recipe or an override is wrong; lists all problems.
    """
    program = Program(prog, "digits", Recipe, _OPTIONS)
    given, flags = program.parse(_seeds_marked(argv))
    resume, seeds = given.get("resume"), given.get("seeds", [])
    path, values = _read(given, program.recipe)
    if "graph" in given:
        values["graph"] = read_recipe(find_recipe(given["graph"], "--graph")).get("graph")
    own, changes = values, bool(flags)
    values, flags = restructured(values, flags)
    groups = recipe_groups(values)
    if "help" in given or "help_all" in given:
        program.show_help(groups, "help_all" in given)
    changed = overridden(values, flags, groups)
    more = [f"--{name.replace('_', '-')}" for name in given if name not in ("resume", "dry_run")]
    if resume and more:
        more = ["a recipe" if each == "--recipe" else each for each in more]
        raise RecipeError(
            [f"resume: a resumed run keeps its recipe and directory. Found {', '.join(more)}."]
        )
    _check_seeds(seeds, flags)
    recipe = _checked(changed)
    return Command(
        resumed_recipe(own, recipe) if resume and changes else recipe,
        name_recipe(path),
        given.get("output_dir"),
        resume,
        given.get("overwrite", False),
        given.get("dry_run", False),
        read_seeds(resume) if resume else tuple(seeds),
        changes,
    )


def _read(given: Mapping[str, Any], default: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of the recipe that a command line asks for, and its values.

    Args:
        given: The options.
        default: The recipe if none is given.

    Raises:
        RecipeError: There is no such recipe or run, or too many are asked for.
    """
    run, resume = given.get("from"), given.get("resume")
    if run:
        others = [name for name in ("recipe", "graph", "resume") if name in given]
        if others:
            found = ", ".join("a recipe" if each == "recipe" else f"--{each}" for each in others)
            raise RecipeError([f"from: takes recipe and graph from {run}. Found {found}."])
        return run / "recipe.yaml", values_to_start_from(run)
    path = resume / "recipe.yaml" if resume else find_recipe(given.get("recipe", default))
    if not path.is_file():
        raise RecipeError([f"resume: `{resume}` is not a run: it has no recipe.yaml."])
    return path, read_recipe(path)


def _check_seeds(seeds: Sequence[int], flags: Iterable[Flag]) -> None:
    """Raise RecipeError if seeds are wrong, or a flag names another one."""
    if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
        found = " ".join(map(str, seeds))
        raise RecipeError([f"seeds: should be 0 or more, each only once. Found {found}."])
    if seeds and any(name == "train.seed" for name, _ in flags):
        raise RecipeError(["command line: --train.seed has no effect beside --seeds."])


def _seeds_marked(argv: Iterable[str]) -> list[str]:
    """Return the arguments with `--seeds` before each seed, so that a recipe can follow them."""
    marked: list[str] = []
    for argument in argv:
        if marked[-2:-1] == ["--seeds"] and re.fullmatch(r"-?[\d.]+", argument):
            marked.append("--seeds")
        marked.append(argument)
    return marked


def _checked(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe, or raise RecipeError with all its problems and those of the data."""
    try:
        return check_recipe(values)
    except RecipeError as error:
        raise RecipeError([*error.problems, *data_problems(values)]) from None


def recipe_groups(values: Mapping[str, Any]) -> dict[str, Group]:
    """Return the sections of a recipe, its nodes, and all possible edges.

    Args:
        values: The recipe, unchecked.
    """
    groups = list(section_groups(Recipe, values).values())
    nodes = below(below(values, "graph"), "nodes")
    for name, node in nodes.items():
        path = ("graph", "nodes", name)
        kind = KINDS[kind_of(node)]
        groups.append(Group(path, kind, below(nodes, name)))
        if kind is not NodeConfig:
            continue  # it learns from nothing
        edges = {key: from_word(edge) for key, edge in below(node, "learns_from").items()}
        taken = {name, *(key.partition("/")[0] for key in edges)}
        absent = [source for source in (LABEL, *nodes) if source not in taken]
        groups += [
            Group((*path, "learns_from", key), EdgeConfig, below(edges, key))
            for key in (*edges, *absent)
        ]
    return {".".join(group.path).replace("-", "_"): group for group in groups}
