"""The values of flags: read from their texts, and put into those of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..errors import RecipeError, found
from .node_config import from_word
from .recipe import YAML_ERRORS, parse_yaml, yaml_said

# JSON Schemas of a whole section, and of an edge.
SECTION = {"type": "object"}
EDGE = {"anyOf": [{"type": "string"}, SECTION]}


def read_value(name: str, text: str, field: Mapping[str, Any]) -> Any:
    """Parse the text of a flag into a value.

    A plain value stays a string; pydantic reads numbers from it, because YAML would read 010 as 8.

    Args:
        name: The flag, without its dashes.
        text: The text.
        field: JSON Schema of the field.

    Raises:
        RecipeError: The text is not YAML.
    """
    kinds = types_of(field)
    if text == "null":
        return None
    nested = kinds.keys() & {"array", "object"}
    bare = not text.startswith(("{", "["))
    if not nested or (bare and "string" in kinds):
        return text
    if nested == {"array"} and not text.startswith("["):
        text = f"[{text}]"
    elif bare and "=" in text:  # nesterov=False,eps=1e-8, the form of timm's flags
        text = "{" + re.sub(r"(^|,)\s*([^=,]+)=", r"\1\2: ", text) + "}"
    words = kinds.get("array", {}).get("items", {}).get("type") == "string"
    try:
        return yaml.load(text, yaml.BaseLoader) if words else parse_yaml(text)
    except YAML_ERRORS as error:
        said = f"argument --{name}: should be YAML. {yaml_said(error)}"
        raise RecipeError([f"command line: {said}"]) from None


def read_mapping(name: str, text: str) -> Any:
    """Return the value of a flag that stands for a whole section.

    Args:
        name: The flag, without its dashes.
        text: The text.

    Raises:
        RecipeError: The text is not YAML.
    """
    return read_value(name, text, SECTION)


def types_of(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return the types that a field accepts, by JSON Schema's name of the type.

    Args:
        field: JSON Schema of the field.
    """
    return {kind.get("type", "object"): kind for kind in field.get("anyOf", [field])}


def at(path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return mappings within each other that hold one value.

    Args:
        path: The keys that lead to the value.
        value: The value.
    """
    key, *rest = path
    return {key: at(rest, value) if rest else value}


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the overrides applied, mapping by mapping.

    Args:
        values: The values, unchecked.
        overrides: What takes the place of some of them.

    Raises:
        RecipeError: The values have something else where the overrides have a mapping.
    """
    result = dict(values)
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            old = from_word(result.get(key))  # an edge can be written as a bare word
            if not isinstance(old, Mapping | None):
                said = f"`{key}` should be a mapping, because a flag is for a key in it."
                raise RecipeError([f"command line: {said} Found {found(old)}."])
            value = merged(old or {}, value)
        result[key] = value
    return result
