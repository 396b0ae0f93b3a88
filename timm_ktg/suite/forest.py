"""A forest plot: the difference of every method to the first base, as a point and an interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..records.files import replace_whole
from .results import Results

_CLEAR, _UNCLEAR = "#0072B2", "#8A8A8A"
_ROW = 0.28  # inches


def draw_forest(path: Path, results: Results) -> None:
    """Write the plot of a data set as SVG.

    Args:
        path: The file.
        results: What the table says; something is compared with its first base.

    Raises:
        StorageError: The file cannot be written.
    """
    from matplotlib import rc_context

    # The same figures give the same file, and a title may contain dollars.
    with rc_context({"svg.hashsalt": path.name, "text.parse_math": False}):
        figure = _figure(results)
        with replace_whole(path) as partial:
            figure.savefig(
                partial,
                format="svg",
                bbox_inches="tight",
                metadata={"Date": None},
                facecolor="white",
            )


def _figure(results: Results) -> Any:
    from matplotlib.figure import Figure

    base = results.suite.bases[0]
    found = sorted(results.comparisons[base].items(), key=lambda each: each[1].welch.gap)
    figure = Figure((7.5, 1.2 + _ROW * len(found)))
    axes = figure.subplots()
    for row, (_, each) in enumerate(found):
        color = _CLEAR if each.is_clear else _UNCLEAR
        if not math.isnan(each.welch.low):
            axes.plot([each.welch.low, each.welch.high], [row, row], color=color, linewidth=1.6)
        axes.plot([each.welch.gap], [row], "o", color=color, markersize=5)
    axes.axvline(0, color="#1B2430", linewidth=0.8)
    axes.set_yticks(range(len(found)), [results.name_of(name) for name, _ in found], fontsize=8)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(
        f"test top-1, points over {results.name_of(base)} (95 %, Welch; blue: Holm p < 0.05)",
        fontsize=8,
    )
    axes.set_title(results.title, fontsize=9, loc="left")
    return figure
