"""Flags of a command line, generated from the schema of a recipe."""

from __future__ import annotations

import json
from argparse import SUPPRESS, ArgumentError, ArgumentParser, BooleanOptionalAction
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from pydantic_core import to_jsonable_python

from ..errors import RecipeError, collected, did_you_mean
from .flag_values import EDGE, SECTION, at, merged, read_value, types_of
from .most_used import MOST_USED
from .node_config import EdgeConfig, from_word
from .recipe import MEANT
from .section import Section

Options = Mapping[tuple[str, ...], Mapping[str, Any]]  # names to arguments of `add_argument`
Flag = tuple[str, str]  # such as ("train.lr", "0.1")


def _path(text: str) -> Path | None:
    return None if text == "null" else Path(text)


COMMON: Options = {
    ("-h", "--help"): {"action": "store_true", "help": "show the flags used most, and exit"},
    ("--help-all",): {"action": "store_true", "help": "show every flag, and exit"},
    ("--output-dir",): {"type": _path, "help": "directory for all output; null: below runs"},
    ("--dry-run",): {
        "action": BooleanOptionalAction,
        "help": "build and check everything, but do not train",
    },
}

_NOTHING = object()


@dataclass(frozen=True)
class Group:
    """A section of a recipe, whose fields are flags.

    Args:
        path: The keys that lead to the section in the recipe.
        section: The schema.
        values: The recipe's values, unchecked.
    """

    path: tuple[str, ...]
    section: type[Section]
    values: Mapping[str, Any]

    @property
    def fields(self) -> Mapping[str, Any]:
        """JSON Schemas of the fields, by name."""
        return _fields(self.section)


Groups = Mapping[str, Group]  # by the flag of the whole section, without dashes


@dataclass(frozen=True)
class Program:
    """A program that takes a recipe.

    Args:
        prog: The command that starts the program, for the help.
        recipe: The default recipe.
        schema: The schema of the recipes.
        options: Options in addition to the fields of the recipe.
    """

    prog: str
    recipe: str
    schema: type[Section]
    options: Options

    def parse(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[Flag]]:
        """Return the given options, including the recipe's name, and the other flags.

        Args:
            argv: The arguments, without the program's name.

        Raises:
            RecipeError: An option does not exist, or its value is missing.
        """
        own, flags = split_flags(argv)
        try:
            given, unknown = self._parser().parse_known_args(own)
        except ArgumentError as error:
            raise RecipeError([f"command line: {error}."]) from None
        if unknown:
            names = [name for names in self.options for name in names]
            names += flags_of(self.schema)
            raise _unknown(unknown[0].partition("=")[0], names)
        return vars(given), flags

    def show_help(self, groups: Groups, everything: bool) -> NoReturn:
        """Print the help, with flags for fields and their values in the recipe, and exit.

        Args:
            groups: The sections of the recipe.
            everything: Show all fields; otherwise those used most, of the edges that there are.
        """
        parser = self._parser()
        shown = {
            flag: (group, key)
            for flag, (group, key) in _flags(groups).items()
            if everything or (key in MOST_USED.get(group.path[0], ()) and not _is_absent(group))
        }
        used = {group.path for group, _ in shown.values()}
        boxes = {
            group.path: parser.add_argument_group(name)
            for name, group in groups.items()
            if group.path in used
        }
        for flag, (group, key) in shown.items():
            metavar, said = _metavar(group.fields[key]), _help(group, key).replace("%", "%%")
            boxes[group.path].add_argument(flag, metavar=metavar, help=said)
        parser.print_help()
        parser.exit()

    def _parser(self) -> ArgumentParser:
        parser = ArgumentParser(
            prog=self.prog,
            usage="%(prog)s [RECIPE] [--section.field value ...]",
            argument_default=SUPPRESS,
            add_help=False,  # the help shows the recipe's values, which are not known yet
            allow_abbrev=False,
            exit_on_error=False,
        )
        said = f"path of a recipe or of a run, or name of a bundled recipe (default: {self.recipe})"
        parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=said)
        for names, how in self.options.items():
            parser.add_argument(*names, **how)
        return parser


def _is_absent(group: Group) -> bool:
    """Return whether a group is an edge that the recipe does not have."""
    return group.section is EdgeConfig and not group.values


def flags_of(schema: type[Section]) -> list[str]:
    """Return the flags of all top-level sections of a recipe, such as `--train.lr`."""
    return list(_flags(section_groups(schema, {})))


def section_groups(schema: type[Section], values: Mapping[str, Any]) -> dict[str, Group]:
    """Return the top-level sections of a recipe by name.

    Args:
        schema: The schema of the recipe.
        values: The recipe, unchecked.
    """
    sections: Any = {name: field.annotation for name, field in schema.model_fields.items()}
    return {name: Group((name,), sections[name], below(values, name)) for name in sections}


def below(values: Any, key: str) -> Mapping[str, Any]:
    """Return the mapping at a key of unchecked values, or an empty one if there is none."""
    found = values.get(key) if isinstance(values, Mapping) else None
    return {str(name): value for name, value in found.items()} if isinstance(found, Mapping) else {}


def overridden(
    values: Mapping[str, Any], flags: Iterable[Flag], groups: Groups
) -> Mapping[str, Any]:
    """Return a recipe's values with the flags applied.

    A mapping takes the place of the recipe's; flags for the same section or mapping combine.

    Args:
        values: The recipe, unchecked.
        flags: The flags for its fields.
        groups: The sections of the recipe.

    Raises:
        RecipeError: Flags do not exist or their values cannot be read; lists all.
    """
    lists: dict[str, list[Any]] = {}
    overrides: list[Mapping[str, Any]] = []
    problems: list[str] = []
    for name, text in flags:
        with collected(problems):
            path, field = _find(name, groups)
            value = read_value(name, text, field)
            if isinstance(value, Mapping):
                values = merged(values, at(path, None))  # nothing of the recipe's stays
            if field is EDGE:
                value = from_word(value)
            if isinstance(value, list):  # its items can be given one by one
                value = lists[name] = [*lists.get(name, []), *value]
            overrides.append(at(path, value))
    for each in overrides:
        with collected(problems):
            values = merged(values, each)
    if problems:
        raise RecipeError(problems)
    return values


def split_flags(argv: Iterable[str]) -> tuple[list[str], list[Flag]]:
    """Return the program's own arguments, and the flags for the recipe's fields.

    Both can be written with `-` or `_`: `--train.batch-size`, `--dry_run`.
    """
    own, flags = [], []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name.startswith("--"):
            own.append(argument)
        elif "." not in name:
            own.append(name.replace("_", "-") + equals + text)
        else:
            text = text if equals else next(arguments, "--")
            if text.startswith("--") and not equals:
                raise RecipeError([f"command line: argument {name}: expected one argument."])
            flags.append((name[2:].replace("-", "_"), text))
    return own, flags


@cache
def _fields(section: type[Section]) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = section.model_json_schema()["properties"]
    return fields


def _flags(groups: Groups) -> dict[str, tuple[Group, str]]:
    """Return all flags, each with its field's section and key."""
    parents = {group.path[:-1] for group in groups.values()}
    return {
        f"--{name}.{key}": (group, key)
        for name, group in groups.items()
        for key in group.fields
        if (*group.path, key) not in parents  # nested fields have their own flags
    }


def _find(name: str, groups: Groups) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Return the keys that lead to a field or a section, and its JSON Schema.

    Raises:
        RecipeError: No field or section has this name.
    """
    if name in groups:
        group = groups[name]
        return group.path, EDGE if group.section is EdgeConfig else SECTION
    above, _, key = name.rpartition(".")
    if above in groups and key in groups[above].fields:
        return (*groups[above].path, key), groups[above].fields[key]
    for edge in (name, above):
        # The bare name of the source would add an edge beside the named ones.
        edges = [group.path[-1] for other, group in groups.items() if other.startswith(f"{edge}/")]
        if edges:
            said = f"--{edge} should name one of the recipe's edges: {', '.join(edges)}."
            raise RecipeError([f"command line: {said}"])
    raise _unknown(f"--{name}", _flags(groups))


def _unknown(flag: str, names: Collection[str]) -> RecipeError:
    """Return the error for an unknown flag, with the nearest valid one."""
    above, dot, key = flag.removeprefix("--").replace("-", "_").rpartition(".")
    meant = above + dot + MEANT.get(key, key)
    # `--lr` means `--train.lr`, which is not the nearest in spelling.
    ends = [name for name in names if f".{name[2:]}".endswith(f".{meant}")]
    nearest = min(ends, key=lambda name: name.count("."), default="")
    hint = did_you_mean(nearest or flag, names)
    # The value is not repeated, because it may be a password.
    return RecipeError([f"command line: unrecognized arguments: {flag}.{hint}"])


def _metavar(field: Mapping[str, Any]) -> str:
    kinds = {name: kind.get("enum") for name, kind in types_of(field).items() if name != "null"}
    return "|".join(f"{{{','.join(words)}}}" if words else name for name, words in kinds.items())


def _help(group: Group, key: str) -> str:
    field = group.fields[key]
    value = group.values.get(key, field.get("default", _NOTHING))
    if value is _NOTHING:
        return f"{field['description']} (in every recipe)"
    if field.get("writeOnly") and value is not None:
        return f"{field['description']} (the recipe's is not shown)"
    plain = value if isinstance(value, str) else json.dumps(to_jsonable_python(value, fallback=str))
    return f"{field['description']} (default: {plain})"
