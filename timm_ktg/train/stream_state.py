"""Saves and loads where a run is in its stream of images."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate.utils import gather_object

from ..data import stream_of
from .training import Training

_FILE = "stream.json"


def save_stream(training: Training, folder: Path) -> None:
    """Write where the readers of all processes are, if images are streamed; call it on all."""
    stream = stream_of(training.images.train)
    if stream is None:
        return
    states = gather_object([stream.state_dict()])
    if training.accelerator.is_main_process:
        (folder / _FILE).write_text(json.dumps(states))


def load_stream(training: Training, folder: Path) -> None:
    """Let this process's readers go on where they were, if images are streamed.

    Raises:
        ValueError: The file is no such state, or its run had other numbers of processes or workers.
    """
    stream = stream_of(training.images.train)
    if stream is None:
        return
    states = json.loads((folder / _FILE).read_bytes())
    accelerator = training.accelerator
    if len(states) != accelerator.num_processes:
        raise ValueError(
            f"a stream can only go on with as many processes as before, {len(states)}. "
            f"Found {accelerator.num_processes}"
        )
    stream.load_state_dict(states[accelerator.process_index])
