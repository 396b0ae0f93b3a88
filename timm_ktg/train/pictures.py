"""The pictures in a run's directory, kept up to date while it trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..draw.curves import draw_curves
from ..draw.picture import draw_graph, results_of
from ..errors import one_line
from ..recipe.graph_config import GraphConfig
from ..records.run_directory import RunDirectory

_INTERVAL = 60.0  # seconds from one drawing of the curves to the next

_logger = logging.getLogger(__name__)


class RunPictures:
    """Draws a run's graph and curves; what cannot be drawn costs a line of the log, not the run.

    Args:
        graph: The run's graph.
        directory: The run's.
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
        """Draw the curves so far, at the end of an epoch, if the last drawing is long ago."""
        if time.monotonic() - self._drawn >= _INTERVAL:
            self._attempt(lambda: draw_curves(self._directory.path))
            self._drawn = time.monotonic()

    def end(self) -> None:
        """Draw the graph with its results, and the whole curves."""
        path, graph = self._directory.path, self._directory.graph
        self._attempt(lambda: draw_graph(self._graph, graph, results_of(path)))
        self._attempt(lambda: draw_curves(path))

    def _attempt(self, draw: Callable[[], None]) -> None:
        if not self._is_main:
            return
        try:
            draw()
        except Exception as error:  # a broken matplotlib, a full disk: the training goes on
            _logger.warning("%s: no picture: %s", self._directory.path, one_line(error))
