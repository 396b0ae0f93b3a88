"""A validation on the terminal and in files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..records.files import write_whole, writing
from ..terminal import console
from .tally import Measured
from .validation import Validation

_ROWS = 20  # classes that the terminal shows


def show_validation(found: Validation, target: str) -> None:
    """Print what a validation found.

    Args:
        found: The validation.
        target: The run's target, which is marked.
    """
    title = f"{found.images:,} {found.split} images of {found.dataset}"
    table = _table(title, "node", "top-1 %", "top-5 %", "loss", "ECE %")
    for name, node in found.nodes.items():
        figures = (node.top1, node.top5, node.loss, node.ece)
        digits = (2, 2, 4, 2)
        row = (f"{value:.{n}f}" for value, n in zip(figures, digits, strict=True))
        marked = f"{name} (target)" if name == target else name
        table.add_row(marked, *row, style="bold" if name == target else None)
    console().print(table)
    if len(found.nodes) > 1:
        console().print(_agreement(found))
    console().print(_per_class(found, target if target in found.nodes else next(iter(found.nodes))))


def save_validation(found: Validation, folder: Path) -> list[Path]:
    """Write a validation as JSON, and its tables as CSV.

    Args:
        found: The validation.
        folder: Where to; it need not exist.

    Returns:
        The files.

    Raises:
        StorageError: A file cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names, classes = list(found.nodes), found.class_names
    columns = [node.per_class for node in found.nodes.values()]
    texts = {
        "validation.json": json.dumps(_as_json(found), indent=2) + "\n",
        "per-class.csv": to_csv(
            ["class", "images", *names],
            zip(classes, _counts(found), *columns, strict=True),
        ),
        "agreement.csv": to_csv(
            ["node", *names], ([name, *found.agreement[name].values()] for name in names)
        ),
    }
    for name, node in found.nodes.items():
        rows = zip(classes, node.confusion.tolist(), strict=True)
        texts[f"confusion-{name}.csv"] = to_csv(
            ["class, then predictions", *classes], ([each, *counts] for each, counts in rows)
        )
    for file, text in texts.items():
        write_whole(folder / file, text)
    return [folder / file for file in texts]


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV.

    Args:
        header: Names of the columns.
        rows: The rows; None leaves a field empty.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _as_json(found: Validation) -> dict[str, Any]:
    return {
        "dataset": found.dataset,
        "split": found.split,
        "images": found.images,
        "nodes": {name: _figures(node, found) for name, node in found.nodes.items()},
        "agreement": found.agreement,
    }


def _figures(node: Measured, found: Validation) -> dict[str, Any]:
    figures = {"top1": node.top1, "top5": node.top5, "loss": node.loss, "ece": node.ece}
    return {**figures, "per_class": dict(zip(found.class_names, node.per_class, strict=True))}


def _counts(found: Validation) -> list[int]:
    """Return the number of images of each class."""
    counts: list[int] = next(iter(found.nodes.values())).confusion.sum(1).tolist()
    return counts


def _agreement(found: Validation) -> Table:
    table = _table("Same top-1, % of images", "node", *found.agreement)
    for name, shares in found.agreement.items():
        table.add_row(name, *(f"{share:.2f}" for share in shares.values()))
    return table


def _per_class(found: Validation, node: str) -> Table:
    """Return the table of the classes that a node knows least."""
    measured = found.nodes[node]
    rows = sorted(_class_rows(measured, found), key=lambda row: row[2])[:_ROWS]
    few = f"the {_ROWS} least accurate of {len(found.class_names)}" if len(rows) == _ROWS else "all"
    title = f"Classes of {node}, {few}"
    table = _table(title, "class", "images", "top-1 %", "most often taken for")
    for name, count, top1, other in rows:
        table.add_row(name, f"{count:,}", f"{top1:.2f}", other)
    return table


def _class_rows(node: Measured, found: Validation) -> Iterator[tuple[str, int, float, str]]:
    wrong = node.confusion.clone().fill_diagonal_(0)
    counts, worst = _counts(found), wrong.max(1)
    for index, top1 in enumerate(node.per_class):
        if top1 is not None:
            times, other = int(worst.values[index]), found.class_names[int(worst.indices[index])]
            said = f"{other} ({times})" if times else "-"
            yield found.class_names[index], counts[index], top1, said


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table
