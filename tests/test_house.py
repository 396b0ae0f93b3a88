"""The house: every room imports only from rooms below it."""

import ast
from pathlib import Path

import pytest

import timm_ktg

HOUSE = Path(timm_ktg.__file__).parent
# From the ground up: a room may import only from those before it.
ROOMS = (
    *("errors", "terminal", "models", "data", "records", "graph", "recipe", "plugin"),
    *("use", "validate", "predict", "export"),
    *("draw", "tracking", "train", "search", "suite", "review", "__init__", "__main__"),
)
# Rooms that may import less than their place allows.
KNOWS = {
    **dict.fromkeys(("errors", "models"), set[str]()),
    **dict.fromkeys(("terminal", "data", "records", "graph"), {"errors"}),
    "recipe": {"errors", "graph", "data", "records"},
    "plugin": {"errors", "graph", "recipe"},
    "use": {"errors", "terminal", "data", "records", "graph", "recipe"},
}
FILES = sorted(HOUSE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    package = ["timm_ktg", *file.relative_to(HOUSE).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = [*base, *(node.module or "").split(".")]
            # `from .. import room` names rooms, `from ..room import name` is in one.
            deep = [path[1]] if len(path) > 1 and path[1] else [each.name for each in node.names]
            found |= set(deep) if path[0] == "timm_ktg" else set()
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "timm_ktg" and len(name) > 1}
    return found


def room_of(file: Path) -> str:
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(HOUSE).as_posix())
def test_file_imports_from_rooms_below_its_own(file: Path) -> None:
    room = room_of(file)
    below = KNOWS.get(room, set(ROOMS[: ROOMS.index(room)]))
    assert imported(file) - {room} <= below


def test_every_room_is_in_the_list() -> None:
    assert {room_of(file) for file in FILES} == set(ROOMS)
