"""Runs of recipes: in this process, in another one, in two."""

import json
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import patch_environment
from torch import Tensor, nn

import timm_ktg as ktg
from tests import edge_modules
from tests.recipe_cases import Values, write_recipe
from timm_ktg.graph import gates, label_losses, losses
from timm_ktg.recipe.recipe import check_recipe, load_recipe
from timm_ktg.records.metrics import Metrics
from timm_ktg.train.identity import Identity
from timm_ktg.train.loop import start_epoch, train_epoch
from timm_ktg.train.training import Training, build_training

# Tests train on the CPU, because many compare bits. KTG_TEST_DEVICE=cuda lets them train on a GPU.
ON_CPU = os.environ.get("KTG_TEST_DEVICE", "cpu") == "cpu"
USE_CPU = str(ON_CPU).lower()
on_cpu = pytest.mark.skipif(
    not ON_CPU, reason="needs a CPU: its messages, tensors, tables or processes"
)


def settle_device() -> None:
    """Let a GPU compute the same bits again, as a CPU does."""
    if not ON_CPU:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)


settle_device()

TIMES = ("seconds", "images_per_second")
DEADLINE = 240  # seconds, to catch hangs; generous, for a busy machine

# Gates and losses that show their inputs, or fail at some point of a run.

progress: list[float] = []
calls = {"erratic": 0}


def recording(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    progress.append(float(context.progress))
    return losses


def breaking(losses: Tensor, context: ktg.EdgeContext, *, factor: float | str = 1.0) -> Tensor:
    """Multiply by a factor late in the run; a word for one that recipes refuse, such as `inf`."""
    return losses * (float(factor) if 0.6 < context.progress < 0.9 else 1.0)


def erratic(
    source: ktg.NodeOutput,
    destination: ktg.NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    good: int,
) -> Tensor:
    """Cross-entropy, the first `good` times."""
    calls["erratic"] += 1
    values = label_losses.cross_entropy(source, destination, labels, temperature=temperature)
    return values if calls["erratic"] <= good else values * float("nan")


def scaled(
    source: ktg.NodeOutput,
    destination: ktg.NodeOutput,
    labels: Tensor,
    *,
    temperature: float,
    factor: float,
) -> Tensor:
    values = label_losses.cross_entropy(source, destination, labels, temperature=temperature)
    return values * factor


def register_cases() -> None:
    for gate in (recording, breaking):
        gates.register_gate(gate)
    for loss in (erratic, scaled):
        losses.register_loss(loss)
    edge_modules.register()


def reset_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def build(values: Values) -> Training:
    """Build a recipe in this single process."""
    reset_accelerate()
    recipe = check_recipe(values)
    torch.manual_seed(77)  # nothing should depend on it
    accelerator = Accelerator(cpu=ON_CPU, mixed_precision=recipe.train.mixed_precision)
    return build_training(recipe, accelerator)


def train(training: Training, epochs: int = 1) -> list[Metrics]:
    """Train some epochs and return their figures."""
    return [train_epoch(training, start_epoch(training)) for _ in range(epochs)]


def spy_on_losses(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that will hold outputs, labels and losses of every update."""
    steps: list[Any] = []
    losses = training.graph.losses

    def spy(outputs: dict[str, ktg.NodeOutput], labels: Tensor, progress: float) -> ktg.GraphLosses:
        found = losses(outputs, labels, progress)
        steps.append((outputs, labels, found))
        return found

    monkeypatch.setattr(training.graph, "losses", spy)
    return steps


def identity_in(state: Path) -> Identity:
    """What identifies the states of the run that a state is in."""
    manifest = json.loads((state / "manifest.json").read_text())
    recipe = load_recipe(str(state.parent.parent))
    return Identity(recipe, manifest["recipe"], manifest["data"], ())


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest difference of two states."""
    assert first.keys() == second.keys()
    return max(
        float((value.double() - second[key].double()).abs().max()) for key, value in first.items()
    )


# Runs.


def run_main(*argv: str | Path) -> int:
    """Run the main job in this process."""
    from timm_ktg.train.__main__ import main

    reset_accelerate()
    with patch_environment(accelerate_use_cpu=USE_CPU):
        return main([str(argument) for argument in argv])


def train_run(path: Path, values: Values, *flags: str) -> Path:
    """Write a recipe beside `path`, train it there in this process, return `path`."""
    recipe = write_recipe(path.with_suffix(".yaml"), values)
    assert run_main(recipe, "--output-dir", path, *flags) == 0
    return path


@contextmanager
def interrupted_in(epoch: int, target: str | None = None) -> Iterator[None]:
    """Press Ctrl-C after three batches of an epoch (from 1) of a run (of this target), in here."""
    import timm_ktg.train.run

    start_epoch = timm_ktg.train.run.start_epoch

    def start(training: Training) -> Iterable[Any]:
        batches = start_epoch(training)
        other = target not in (None, training.graph.target)
        return batches if other or training.state.epochs + 1 < epoch else three(batches)

    def three(batches: Iterable[Any]) -> Iterator[Any]:
        yield from islice(batches, 3)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_ktg.train.run, "start_epoch", start)
        yield


def stop_run(path: Path, values: Values, epoch: int) -> Path:
    """Like `train_run`, but interrupted in the middle of an epoch, from 1."""
    recipe = write_recipe(path.with_suffix(".yaml"), values)
    with interrupted_in(epoch):
        assert run_main(recipe, "--output-dir", path) == 130
    return path


def metrics_of(run: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl without the times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def summary_of(run: Path) -> Values:
    summary: Values = json.loads((run / "summary.json").read_text())
    return summary


def weights_of(run: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (run / "nodes").glob("*.safetensors")}
    assert found
    return found


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that two runs have the same results, bit for bit, except for times."""
    assert metrics_of(first) == metrics_of(second)
    assert weights_of(first) == weights_of(second)
    assert summary_of(first)["nodes"] == summary_of(second)["nodes"]


# Real processes, which tests can kill. They are forked from one that has already imported torch and
# timm, because the import takes longer than most tests here.

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(
    ["tests.training_cases", "timm_ktg.records.run_directory", "sklearn.datasets"]
)


def start(log: Path, function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function in a new process, with its output in a file."""
    process = _forkserver.Process(target=_logged, args=(log, function, arguments))
    process.start()
    return process


def finish(*processes: BaseProcess, deadline: float = DEADLINE) -> list[int | None]:
    """Return the exit codes; a process that hangs is killed, and its code is None."""
    end = time.monotonic() + deadline
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    return [None if process in hung else process.exitcode for process in processes]


def program(*argv: str | Path) -> None:
    """Be `python -m timm_ktg.train`."""
    sys.argv = ["timm_ktg.train", *map(str, argv)]
    runpy.run_module("timm_ktg.train", run_name="__main__", alter_sys=True)


def start_two(folder: Path, function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start a function in two processes, in the environment that `accelerate launch` makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(folder / f"{rank}.log", _ranked, rank, port, function, *arguments) for rank in (0, 1)
    ]


def _ranked(rank: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
    }
    function(*arguments)


def _logged(log: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["ACCELERATE_USE_CPU"] = USE_CPU
    register_cases()
    function(*arguments)
