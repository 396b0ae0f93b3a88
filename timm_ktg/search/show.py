"""What the terminal shows of a search: the table at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from ..statistics import Sample, difference
from ..terminal import console
from .final import LABEL_ONLY, SUM, Row
from .objective import describe


def show_result(
    rows: Sequence[Row],
    samples: Mapping[str, Sample | None],
    spent: Mapping[str, int],
    directory: Path,
) -> None:
    """Print the best graphs beside the controls, what was spent, and where everything lies."""
    table = Table(title="Best graphs and controls; the choice was made by validation images")
    bases = [name for name in (LABEL_ONLY, SUM) if name in samples]
    gains = [f"over {name} [95 %]" for name in bases]
    for column in ("graph", "val top-1 %", "test top-1 %", *gains, "edges"):
        table.add_column(column, justify="left" if column in ("graph", "edges") else "right")
    for row in rows:
        table.add_row(
            row.name if row.trial is None else f"{row.name} (trial {row.trial})",
            "-" if row.value is None else f"{row.value:.2f}",
            str(samples[row.name] or "-"),
            *(_gain(row.name, base, samples) for base in bases),
            describe(row.graph).replace("; ", "\n"),
            style=None if row.trial is None else "bold",
        )
    console().print(table)
    print("Spent: " + ", ".join(f"{what} {count:,}" for what, count in spent.items()) + ".")
    print(f"result     {directory / 'result.json'}")
    print(f"best graph {directory / 'best.yaml'}")
    print(f"train it   accelerate launch -m timm_ktg.train {directory / 'best.yaml'}")


def _gain(name: str, base: str, samples: Mapping[str, Sample | None]) -> str:
    """Return how far a row is above a control, with the interval where there is one."""
    before, found = samples[base], samples[name]
    if before is None or found is None or name == base:
        return "-"
    gap, low, high = difference(before.values, found.values)
    interval = "" if low != low else f" [{low:+.2f}, {high:+.2f}]"
    return f"{gap:+.2f}{interval}"
