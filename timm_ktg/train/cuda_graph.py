"""Records an update once and replays it as one launch."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.optim import get_optimizer_class
from torch import Tensor

from ..errors import RecipeError, first_line, located
from ..graph.edge import Edge
from ..graph.node import GraphNode, Node
from ..graph.registry import Bound, shown
from ..recipe.recipe import Recipe
from ..recipe.train_config import LOOKAHEAD, TrainConfig
from .metrics import TrainingError

_logger = logging.getLogger(__name__)

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # on CUDA in all torch releases
OTHER_STEPS = ("foreach", "differentiable")  # these exclude the fused one

WARM_UP = 3  # updates before the recording, so that libraries choose their algorithms

# A loader's batch, and a function from it to images [B, 3, H, W], labels [B] or [B, C], and
# maybe the views that the images are [B].
Batch = tuple[Tensor, ...]
Make = Callable[..., tuple[Tensor, ...]]

# Does an update for a batch, its number from 1, and the progress k / k_end.
Update = Callable[[Batch, float | Tensor, float | Tensor], None]
Do = Callable[[Update, Batch, int, float], None]
Replay = Callable[[], None]


def plain_updates(update: Update, batch: Batch, number: int, progress: float) -> None:
    """Do an update operator by operator."""
    update(batch, number, progress)


class Recorder(Protocol):
    """Records the work of a device, to replay it."""

    def __init__(self, device: torch.device) -> None:
        """Create a recorder for a device."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context for the updates before the recording."""

    def record(self, update: Callable[[], None]) -> Replay:
        """Record an update without running it, and return the function that replays it."""


class CudaRecorder:
    """Records CUDA graphs.

    Reference:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run work on the stream of the recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), warnings.catch_warnings():
                # A `capturable` optimizer warns that its step is not being recorded.
                warnings.filterwarnings("ignore", ".*capturable=True")
                yield
        finally:
            current.wait_stream(self._stream)

    def record(self, update: Callable[[], None]) -> Replay:
        """Record an update; other threads, such as those that load images, keep running."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            update()
        return graph.replay


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for all recordings, because libraries keep memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


RECORDERS: Mapping[str, type[Recorder]] = {"cuda": CudaRecorder}  # by device type

# In older versions a failed recording left the allocator in a state in which the next failure can
# crash, so `auto` does not try.
FAILS_CLEANLY = torch.__version__ >= "2.11"

# The packages whose code `auto` records. A replay does not run Python again, and code of others may
# count or draw numbers there.
KNOWN = ("timm_ktg", "timm", "torch")


class RecordedUpdates:
    """Records the first update after the warm-up and replays it for all later ones.

    A replay reads the same memory as the recording, so the batch, its number, the progress and the
    learning rates (in float32) are copied there first. A batch with a different shape, such as the
    last of an epoch, is computed operator by operator, like those of the warm-up. Weights, the
    optimizer's state and the graph's copies of frozen nodes must not move after the recording, so
    load any state before it.

    Args:
        optimizer: The optimizer, made with `cuda_graph_arguments`.
        device: The device for the updates.
        required: Whether to raise if an update cannot be recorded; otherwise, warn and go on
            operator by operator.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: torch.device, required: bool
    ) -> None:
        self.optimizer, self.required = optimizer, required
        self._recorder = RECORDERS[device.type](device)
        self._number = torch.zeros((), device=device)
        # In double precision, like the progress that an unrecorded update gets.
        self._progress = torch.zeros((), device=device, dtype=torch.float64)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._batch: Batch = ()
        self._done = 0
        self._replay: Replay | None = None
        self._given_up = False

    def __call__(self, update: Update, batch: Batch, number: int, progress: float) -> None:
        """Do an update; see `Do`."""
        self._number.fill_(number)
        self._progress.fill_(progress)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])
        if not self._batch:
            self._batch = tuple(each.clone() for each in batch)
        if self._done >= WARM_UP and not self._given_up and _shapes(batch) == _shapes(self._batch):
            for kept, given in zip(self._batch, batch, strict=True):
                kept.copy_(given)
            if self._replay is None:
                self._replay = self._recorded(update)
            if self._replay is not None:
                self._replay()
                return
        with self._recorder.aside(), self._rates_on_device():
            update(batch, self._number, self._progress)
        self._done += 1

    def _recorded(self, update: Update) -> Replay | None:
        try:
            with self._rates_on_device():
                return self._recorder.record(
                    lambda: update(self._batch, self._number, self._progress)
                )
        except RuntimeError as error:
            problem = f"train.cuda_graph: an update cannot be recorded: {first_line(_cause(error))}"
            if self.required:
                raise TrainingError(problem) from error
            self._given_up = True
            _logger.warning("%s Going on without it.", problem)
            return None

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Make the optimizer read the learning rates from the device."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, rates, strict=True):
                group["lr"] = number


def is_recorded(
    recipe: Recipe, accelerator: Accelerator, nodes: Sequence[GraphNode], edges: Sequence[Edge]
) -> bool:
    """Return whether updates are recorded.

    Args:
        recipe: The recipe.
        accelerator: Device, processes and precision.
        nodes: The nodes.
        edges: The edges.

    Raises:
        RecipeError: Updates cannot be recorded as asked, or a package that the optimizer needs is
            missing.
    """
    wanted, kind = recipe.train.cuda_graph, accelerator.device.type
    if wanted == "never" or (wanted == "auto" and kind not in RECORDERS):
        return False
    problem = _auto_problem(recipe, nodes, edges) if wanted == "auto" else None
    problem = problem or _problem(recipe.train, accelerator)
    if problem and wanted == "always":
        raise RecipeError([f"train.cuda_graph: {problem}"])
    if problem:
        _logger.warning("Updates are not recorded: train.cuda_graph %s", problem)
    return problem is None


def cuda_graph_arguments(opt: str) -> dict[str, bool]:
    """Return the arguments that make a torch optimizer read everything on the device.

    Args:
        opt: timm's name of the optimizer.

    Returns:
        The arguments; empty if the optimizer cannot do that.

    Raises:
        RecipeError: A package that the optimizer needs is missing.
    """
    if opt.startswith(LOOKAHEAD):  # only some of its steps pull the weights back
        return {}
    with located("train.opt"):
        kind = get_optimizer_class(opt, bind_defaults=False)
    taken = inspect.signature(kind).parameters if kind in FUSED else ()
    return {name: True for name in ("fused", "capturable") if name in taken}


def _problem(train: TrainConfig, accelerator: Accelerator) -> str | None:
    """Return why updates cannot be recorded; None if there is no known reason."""
    if accelerator.device.type not in RECORDERS:
        return f"needs a device of type {', '.join(RECORDERS)}. Found {accelerator.device.type}."
    if accelerator.num_processes > 1:
        return f"needs a single process. Found {accelerator.num_processes}."
    if accelerator.mixed_precision == "fp16":
        return "does not work with fp16: its scaler reads back whether gradients are finite."
    if train.grad_checkpointing:
        return "does not work with train.grad_checkpointing, which reads the generator's state."
    arguments = cuda_graph_arguments(train.opt)
    if not arguments:
        return f"needs an optimizer with a fused step: sgd, adam, adamw. Found {train.opt}."
    wanted = {**{name: False for name in OTHER_STEPS}, **arguments}
    for name, value in wanted.items():
        if train.opt_kwargs.get(name, value) not in (value, None):
            return f"does not work with train.opt_kwargs `{name}: {train.opt_kwargs[name]}`."
    return None


def _auto_problem(recipe: Recipe, nodes: Sequence[GraphNode], edges: Sequence[Edge]) -> str | None:
    """Return why `auto` does not record what `always` would."""
    if not FAILS_CLEANLY:
        return f"needs torch 2.11 or newer, unless it is `always`. Found {torch.__version__}."
    if recipe.data.pipeline != "memory":
        return f"needs `always` with data.pipeline {recipe.data.pipeline}: only digits were tried."
    if foreign := _foreign(nodes, edges):
        return (
            "needs `always` for code that is neither this package's nor timm's, because a replay "
            f"does not run Python again. Found {foreign}."
        )
    return None


def _foreign(nodes: Sequence[GraphNode], edges: Sequence[Edge]) -> str | None:
    """Return the first loss, gate or model that other packages define."""
    used: list[tuple[str, Any]] = []
    for edge in edges:
        used += [
            (f"the gate {shown(edge.gate)}", edge.gate),
            (f"the loss {shown(edge.loss)}", edge.loss),
        ]
    used += [(f"the model of {each.name}", each.model) for each in nodes if isinstance(each, Node)]
    for name, code in used:
        code = code.function if isinstance(code, Bound) else code
        package = getattr(code, "__module__", type(code).__module__).partition(".")[0]
        if package not in KNOWN:
            return f"{name}, of {package}"
    return None


def _shapes(batch: Batch) -> Sequence[torch.Size]:
    return [each.shape for each in batch]


def _cause(error: BaseException) -> BaseException:
    """Return the first error; the error about the interrupted recording only follows from it."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error if before is None else _cause(before)
