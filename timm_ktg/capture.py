"""Updates that are recorded once and then replayed as one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

import torch
from accelerate import Accelerator

from .errors import one_line
from .metrics import TrainingError
from .recipe.train_config import TrainConfig
from .update import Batch, EagerUpdate

_logger = logging.getLogger(__name__)

WARM_UP = 3  # updates before the recording, in which libraries choose their algorithms

Capture = Literal["auto", "always", "never"]
Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what a device is asked to do, and has it do that again."""

    def __init__(self, device: torch.device) -> None:
        """Make one for a device."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for the updates before the recording."""

    def record(self, update: Callable[[], None]) -> Replay:
        """Record an update without doing it, and return what does it."""


class CudaRecorder:
    """Records CUDA graphs.

    Reference:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let work run on the stream of the recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, update: Callable[[], None]) -> Replay:
        """Record an update; other threads, as those that load images, go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            update()
        return graph.replay


RECORDERS: dict[str, type[Recorder]] = {"cuda": CudaRecorder}  # by the kind of device


class CapturedUpdate:
    """Updates that are replayed, from the one after the warm-up on.

    What an update reads lies where it lay at the recording: the batch, its number, the progress
    and the learning rates are copied there first. A batch of another shape, as the last of an
    epoch, is computed operator by operator.

    Args:
        update: Does an update.
        device: Where.
        required: Raise if an update cannot be recorded; else it is said, and updates go on
            operator by operator.
    """

    def __init__(self, update: EagerUpdate, device: torch.device, required: bool) -> None:
        self.update, self.required = update, required
        self._recorder = RECORDERS[device.type](device)
        self._number = torch.zeros((), device=device)
        # Of double precision, as the number that an update without a recording gets.
        self._progress = torch.zeros((), device=device, dtype=torch.float64)
        self._rates = [torch.zeros((), device=device) for _ in update.optimizer.param_groups]
        self._batch: Batch = ()
        self._done = 0
        self._replay: Replay | None = None
        self._given_up = False

    def __call__(self, batch: Batch, number: int, progress: float) -> None:
        """Do one; see `Update`."""
        self._number.fill_(number)
        self._progress.fill_(progress)
        groups = self.update.optimizer.param_groups
        for group, rate in zip(groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        if not self._given_up and self._replay is None and self._done == WARM_UP:
            self._record(batch)
        if self._replay is not None and _shapes(batch) == _shapes(self._batch):
            for kept, given in zip(self._batch, batch, strict=True):
                kept.copy_(given)
            self._replay()
            return
        with self._recorder.aside(), self._rates_on_device():
            self.update(batch, self._number, self._progress)
        self._done += 1

    def _record(self, batch: Batch) -> None:
        self._batch = tuple(each.clone() for each in batch)
        try:
            with self._rates_on_device():
                self._replay = self._recorder.record(
                    lambda: self.update(self._batch, self._number, self._progress)
                )
        except RuntimeError as error:
            problem = f"train.capture: an update cannot be recorded: {one_line(error)}"
            if self.required:
                raise TrainingError(problem) from error
            self._given_up = True
            _logger.warning("%s Going on without.", problem)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimizer read the learning rates from the device."""
        groups = self.update.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, rates, strict=True):
                group["lr"] = number


def capture_problem(
    train: TrainConfig, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> str | None:
    """Return why updates cannot be recorded, None if nothing is known against it."""
    kind = accelerator.device.type
    if kind not in RECORDERS:
        return f"needs a device of {', '.join(RECORDERS)}. Found {kind}."
    if accelerator.num_processes > 1:
        return f"needs a single process. Found {accelerator.num_processes}."
    if accelerator.mixed_precision == "fp16":
        return "does not go with fp16, whose scaler reads back whether gradients are finite."
    if train.torchcompile:
        return "does not go with train.torchcompile."
    if not optimizer.defaults.get("fused"):
        return f"needs an optimizer with a fused step, as sgd or adamw. Found {train.opt}."
    return None


def _shapes(batch: Batch) -> Sequence[torch.Size]:
    return [each.shape for each in batch]
