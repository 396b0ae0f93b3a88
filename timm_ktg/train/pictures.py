"""Keeps the pictures in the directory of a run up to date while it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..draw.curves import draw_curves
from ..draw.picture import draw_graph
from ..draw.reading import results_of
from ..errors import one_line
from ..recipe.graph_config import GraphConfig
from ..records.run_directory import RunDirectory

_INTERVAL = 60.0  # seconds between drawings of the curves

_logger = logging.getLogger(__name__)


class RunPictures:
    """Draws the graph and the curves of a run; a failure is logged and does not stop the run.

    Args:
        graph: The graph of the run.
        directory: The directory of the run.
        is_main: Whether this process writes.
    """

    def __init__(self, graph: GraphConfig, directory: RunDirectory, is_main: bool) -> None:
        self._graph = graph
        self._directory = directory
        self._is_main = is_main
        self._drawn = time.monotonic()

    def begin(self) -> None:
        """Draw the graph."""
        self._attempt(lambda: draw_graph(self._graph, self._directory.graph))

    def go_on(self) -> None:
        """Draw the curves at the end of an epoch, but at most every `_INTERVAL` seconds."""
        if time.monotonic() - self._drawn >= _INTERVAL:
            self._attempt(lambda: draw_curves(self._directory.path))
            self._drawn = time.monotonic()

    def end(self) -> None:
        """Draw the graph with its results, and the complete curves."""
        path, graph = self._directory.path, self._directory.graph
        self._attempt(lambda: draw_graph(self._graph, graph, results_of(path)))
        self._attempt(lambda: draw_curves(path))

    def _attempt(self, draw: Callable[[], None]) -> None:
        if not self._is_main:
            return
        try:
            draw()
        except Exception as error:  # a broken matplotlib or a full disk must not stop the training
            _logger.warning("%s: no picture: %s", self._directory.path, one_line(error))
