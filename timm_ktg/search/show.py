"""What the terminal shows of a search: the table at its end."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..records.sample import gain
from ..terminal import console
from .final import LABEL_ONLY, SUM, Result
from .objective import describe


def show_result(result: Result, directory: Path) -> None:
    """Print the best graphs beside the controls, what was spent, and where everything lies.

    Args:
        result: The search's result.
        directory: Where everything lies.
    """
    samples = result.samples
    table = Table(title="Best graphs and controls; the choice was made by validation images")
    bases = [name for name in (LABEL_ONLY, SUM) if name in samples]
    gains = [f"over {name} [95 %]" for name in bases]
    for column in ("graph", "val top-1 %", "test top-1 %", *gains, "edges"):
        table.add_column(column, justify="left" if column in ("graph", "edges") else "right")
    for row in result.rows:
        table.add_row(
            row.name if row.trial is None else f"{row.name} (trial {row.trial})",
            "-" if row.value is None else f"{row.value:.2f}",
            str(samples[row.name] or "-"),
            *(
                "-" if row.name == base else gain(samples[base], samples[row.name])
                for base in bases
            ),
            describe(row.graph).replace("; ", "\n"),
            style=None if row.trial is None else "bold",
        )
    console().print(table)
    print("Spent: " + ", ".join(f"{what} {count:,}" for what, count in result.spent.items()) + ".")
    print(f"result     {directory / 'result.json'}")
    print(f"best graph {directory / 'best.yaml'}")
    print(f"train it   accelerate launch -m timm_ktg.train {directory / 'best.yaml'}")
