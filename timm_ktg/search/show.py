"""The result of a search on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..records.sample import gain
from ..terminal import console
from .result import Result, Row


def show_result(result: Result, directory: Path) -> None:
    """Print what comes of a search, the graphs side by side, the cost, and where everything lies.

    Args:
        result: The search's result.
        directory: Where everything lies.
    """
    if result.verdict:
        print(result.verdict)
    console().print(_table(result))
    for note in result.notes:
        print(note)
    print("Spent: " + ", ".join(f"{what} {count:,}" for what, count in result.spent.items()) + ".")
    print(f"result     {directory / 'result.json'}")
    recipe = directory / "best.yaml"
    print(f"best graph {recipe}")
    if result.control_wins and result.best_control is not None:
        recipe = control_path(directory, result.best_control)
        print(f"better     {recipe} ({result.best_control.name})")
    print(f"train it   accelerate launch -m timm_ktg.train {recipe}")


def control_path(directory: Path, row: Row) -> Path:
    """Return where the recipe of a control goes."""
    return directory / "controls" / f"{row.name.replace(' ', '-')}.yaml"


def _table(result: Result) -> Table:
    samples, bases = result.samples, result.bases
    table = Table(title="Best graphs and controls; the choice was made by validation images")
    gains = [f"over {name} [95 %]" for name in bases]
    for column in ("graph", "val top-1 %", "test top-1 %", "test set", *gains, "edges"):
        table.add_column(column, justify="left" if column in ("graph", "edges") else "right")
    for row in result.rows:
        sample, twin = samples[row.name], result.twins.get(row.name)
        name = row.name if row.trial is None else f"{row.name} (trial {row.trial})"
        table.add_row(
            f"{name} = {twin}" if twin else name,
            "-" if row.value is None else f"{row.value:.2f}",
            str(sample or "-"),
            "-" if sample is None else f"± {sample.error_of_test_set(result.images):.2f}",
            *(
                "-"
                if result.is_same(row.name, base)
                else gain(samples[base], sample, result.images)
                for base in bases
            ),
            str(row.graph).replace("; ", "\n"),
            style=None if row.trial is None else "bold",
        )
    return table
