"""The package's types reach the projects that depend on it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

# What timm_ktg imports is skipped: checking it too would take minutes.
CONFIG = """
[mypy]
strict = true
[mypy-torch.*,timm.*,pydantic.*,pydantic_core.*,numpy.*,safetensors.*,accelerate.*]
follow_imports = skip
ignore_missing_imports = true
"""
RIGHT = """
import timm_ktg

edge: timm_ktg.Edge = timm_ktg.Edge("helper", "student", gate=timm_ktg.create_gate("correct"))
names: list[str] = timm_ktg.list_gates()
"""
WRONG = """
import timm_ktg

timm_ktg.Edge("helper", 1)
"""


def check(folder: Path, code: str) -> str:
    """Return mypy's output for a one-module project that uses the installed package."""
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "mine.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--cache-dir", "cache", "mine.py"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    return done.stdout


@pytest.mark.slow
def test_dependent_project_is_checked_against_our_types(tmp_path: Path) -> None:
    assert check(tmp_path, RIGHT).startswith("Success")
    assert 'Argument 2 to "Edge" has incompatible type "int"' in check(tmp_path, WRONG)


def test_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    builder = WheelBuilder(str(Path(__file__).parents[1]))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    assert "timm_ktg/py.typed" in names and "timm_ktg/recipes/digits.yaml" in names
