"""What a search costs beside its training, and what early stopping and more workers save.

    python -m tests.benchmarks.search [--seeds 0 1 2 ...] [--workers 1 2 4 8]
        [--only cost share pruning workers] [--seconds 60] [--flags --train.cuda_graph always ...]

- `cost`: one worker, the digits data, graphs of two tiny models, so that training takes little: the
  seconds of a trial that are neither building models nor training nor evaluating, and the process's
  memory after each trial.
- `share`: one worker, 30 trials of the search `digits.yaml` beside this file: the part of their CPU
  time, and of that of the program without its imports, that is neither training nor evaluating.
- `pruning`: the same on two workers of one thread, with ASHA and without. A seed
  draws the same graphs in the same order in both, and trains them alike. Without ASHA there are 24
  trials; with it 72, which take some more epochs than those. Shown for each seed: the best accuracy
  without, and the epochs that all trials took until it was reached; then the median of the ratios.
  Where most graphs come to the same, chance decides which is best, and stopping early saves
  nothing: with its own rate of 0.1, epoch 1 says little of epoch 16 (correlation 0.35, 101
  trials, commit f56ef41), and first rungs at epochs 1 and 2 stop the best too often. So there are
  50 training images a class, a lower rate, 800 images to choose by, and a first rung at epoch 4
  (correlation with epoch 16: 0.86, the median of seeds 0 to 9, 249 trials), all chosen on seed
  1000, which is not shown. Seeds 0 to 9: 0.58, 0.58, 0.75, 0.58, 1.25, 0.41, 0.55, 0.53, 1.08,
  0.77, median 0.58 (2 cores of an AMD EPYC, torch 2.15.0, timm 1.0.31, commits 4df8bee, 350d0b2).
- `workers`: trials an hour of the same, without pruning, by several workers of one thread
  that share this machine, or its accelerator; `--seconds` for each number, with more `--flags`.
  On a GPU the README's are those of half of CIFAR-100's training images: `--data.dataset FOLDER
  --data.input_key img --data.target_key fine_label --data.test_split null --data.holdout 1000
  --data.pad 4 --data.hflip 0.5 --search.target_model resnet32_cifar --search.models
  '["wrn28_2_cifar"]' --search.frozen false --train.epochs 2 --train.mixed_precision bf16
  --train.validation_batch_size 1000`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from tests.benchmarks.ratios import ROOT, provenance
from timm_ktg.search import processes as worker_processes
from timm_ktg.search.__main__ import main as search
from timm_ktg.search.journal import JOURNAL
from timm_ktg.train import training

RECIPE = str(Path(__file__).with_name("digits.yaml"))
COST = [
    *(RECIPE, "--search.trials", "30", "--search.top_k", "0", "--search.pruner", "none"),
    *("--search.frozen", "false", "--search.models", "resnet8_cifar", "--train.epochs", "1"),
    *("--search.gates", '["through", "linear", "correct"]'),
]


@contextmanager
def timed(
    spent: dict[str, float],
    module: Any,
    *names: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[None]:
    """Add up what functions of a module take."""
    kept = {name: getattr(module, name) for name in names}

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = clock()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + clock() - start

        return call

    for name, function in kept.items():
        setattr(module, name, wrapped(name, function))
    yield
    for name, function in kept.items():
        setattr(module, name, function)


def cost(folder: Path) -> str:
    """Run trials in this process, and return what they took besides models and training."""
    spent: dict[str, float] = {}
    fixed: list[float] = []
    memory: list[float] = []
    optimize = optuna.Study.optimize

    def counted(study: optuna.Study, objective: Any, **options: Any) -> None:
        mark = [time.perf_counter(), 0.0]

        def after(study: optuna.Study, trial: FrozenTrial) -> None:
            now, known = time.perf_counter(), sum(spent.values())
            fixed.append(now - mark[0] - (known - mark[1]))
            mark[:] = [now, known]
            memory.append(psutil.Process().memory_info().rss / 2**20)

        options["callbacks"] = [*options["callbacks"], after]
        optimize(study, objective, **options)

    optuna.Study.optimize = counted  # type: ignore[method-assign,assignment]
    with (
        timed(spent, worker_processes, "train_epoch", "evaluate"),
        timed(spent, training, "build_nodes"),
    ):
        code = search([*COST, "--output-dir", str(folder)])
    optuna.Study.optimize = optimize  # type: ignore[method-assign]
    assert code == 0
    low, median, high = statistics.quantiles(fixed[1:])
    spread = f"quartiles {low:.3f} .. {high:.3f}, n={len(fixed) - 1}"
    return (
        f"fixed cost a trial: {median:.3f} s ({spread}; goal 0.5)\n"
        f"memory after trial 2, 10, 20, {len(memory)}: "
        f"{', '.join(f'{memory[i]:.0f}' for i in (1, 9, 19, -1))} MiB"
    )


def share(folder: Path) -> str:
    """Search in this process, and return what part of it neither trains nor evaluates."""
    for module in ("datasets", "matplotlib.figure", "sklearn.datasets", "scipy.stats"):
        importlib.import_module(module)  # a search imports them when it needs them
    spent: dict[str, float] = {}
    with (
        timed(spent, worker_processes, "train_epoch", "evaluate", clock=time.process_time),
        timed(spent, optuna.Study, "optimize", clock=time.process_time),
    ):
        start = time.process_time()
        flags = ["--search.trials", "30", "--search.top_k", "0", "--output-dir", str(folder)]
        assert search([RECIPE, *flags]) == 0
        whole = time.process_time() - start
    useful, trials = spent["train_epoch"] + spent["evaluate"], spent["optimize"]
    return (
        f"neither training nor evaluating: {1 - useful / trials:.1%} of the trials, "
        f"{1 - useful / whole:.1%} of the program (goal 8 %)"
    )


PRUNING = [
    *(RECIPE, "--data.images_per_class", "50", "--data.holdout", "800"),
    *("--train.epochs", "16", "--train.lr", "0.01", "--search.min_resource", "4"),
    *("--search.top_k", "0"),
]
TRIALS = {"none": 24, "asha": 72}


def pruning(folder: Path, seed: int) -> tuple[str, float]:
    """Search with and without ASHA; return how many epochs each took to the same accuracy.

    Returns:
        A line that says so, and the epochs with ASHA over those without; infinity: never.
    """
    found = {kind: _searched(folder / kind, kind, seed) for kind in TRIALS}
    goal = max(value for _, value in found["none"])
    reached = {
        kind: next((epochs for epochs, value in curve if value >= goal), math.inf)
        for kind, curve in found.items()
    }
    said = ", ".join(
        f"{kind} {reached[kind]} (of {curve[-1][0]} in all, best {curve[-1][1]:.2f} %)"
        for kind, curve in found.items()
    )
    return f"seed {seed}: epochs to {goal:.2f} %: {said}", reached["asha"] / reached["none"]


def _searched(folder: Path, kind: str, seed: int) -> list[tuple[int, float]]:
    """Return, as trials end, all epochs so far and the best accuracy so far."""
    flags = [*PRUNING, "--search.pruner", kind, "--search.trials", str(TRIALS[kind])]
    flags += ["--search.seed", str(seed), "--train.seed", str(seed)]
    ended = _trials(folder, flags, workers=2)
    ended.sort(key=lambda trial: trial.datetime_complete or trial.datetime_start)
    epochs = itertools.accumulate(trial.user_attrs["epochs"] for trial in ended)
    values = itertools.accumulate(
        (trial.value or 0.0 if trial.state == TrialState.COMPLETE else 0.0 for trial in ended), max
    )
    return list(zip(epochs, values, strict=True))


def _trials(folder: Path, flags: list[str], workers: int) -> list[FrozenTrial]:
    """Search with some workers of one thread each, and return the trials that were trained."""
    command = [sys.executable, "-m", "timm_ktg.search", *flags, "--output-dir", str(folder)]
    processes = [_worker(command) for _ in range(workers)]
    assert [process.wait() for process in processes] == [0] * workers
    return [trial for trial in _study(folder).trials if "epochs" in trial.user_attrs]


def throughput(
    folder: Path, counts: Sequence[int], seconds: float, flags: Sequence[str]
) -> Iterator[str]:
    """Yield how many trials an hour workers on one device do, while more and more are at work.

    Args:
        folder: An empty folder.
        counts: How many workers, ascending.
        seconds: How long to count, once that many workers are in a trial.
        flags: More of their search.
    """
    windows = _windows(folder, counts, seconds, flags)
    ended = [
        (trial.datetime_start, trial.datetime_complete)
        for trial in _study(folder).get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if trial.datetime_start and trial.datetime_complete
    ]
    for count, begun, over in windows:
        # The part of each trial that lies in the window.
        parts = [
            max((min(over, end) - max(begun, start)) / (end - start), 0) for start, end in ended
        ]
        rate = 3600 * sum(parts) / (over - begun).total_seconds()
        some = sum(part > 0 for part in parts)
        yield f"{count} workers: {rate:,.0f} trials an hour ({sum(parts):.1f} trials, of {some})"


def _windows(
    folder: Path, counts: Sequence[int], seconds: float, flags: Sequence[str]
) -> list[tuple[int, datetime, datetime]]:
    """Search, and return from when to when how many workers were at work; see `throughput`."""
    command = [sys.executable, "-m", "timm_ktg.search", RECIPE, "--search.top_k", "0"]
    command += ["--search.trials", "100000", "--search.pruner", "none", *flags]
    command += ["--output-dir", str(folder)]
    workers: list[subprocess.Popen[bytes]] = []
    windows = []
    try:
        for count in counts:
            workers += [_worker(command) for _ in range(count - len(workers))]
            while len(_in_trial(folder)) < count:
                assert all(worker.poll() is None for worker in workers)
                time.sleep(0.5)
            begun = datetime.now()
            time.sleep(seconds)
            windows.append((count, begun, datetime.now()))
        last = set(_in_trial(folder).values())
        while last & set(_in_trial(folder).values()):
            time.sleep(0.5)
        assert all(worker.poll() is None for worker in workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    return windows


def _worker(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a worker of one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def _study(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    return optuna.load_study(study_name="digits", storage=optuna.storages.JournalStorage(backend))


def _in_trial(folder: Path) -> dict[int, int]:
    """Return the numbers of the trials at work, by their worker's process."""
    if not (folder / JOURNAL).exists():
        return {}
    running = _study(folder).get_trials(deepcopy=False, states=[TrialState.RUNNING])
    return {
        trial.user_attrs["worker"]["pid"]: trial.number
        for trial in running
        if "worker" in trial.user_attrs
    }


PARTS = ["cost", "share", "pruning", "workers"]


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=60, help="for each number of workers")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of their search")
    arguments = parser.parse_args()
    chosen = arguments.only or PARTS
    print(provenance(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if "cost" in chosen:
            print(cost(Path(folder, "cost")), flush=True)
        if "share" in chosen:
            print(share(Path(folder, "share")), flush=True)
        if "workers" in chosen:
            place = Path(folder, "workers")
            counts = sorted(set(arguments.workers))
            for line in throughput(place, counts, arguments.seconds, arguments.flags):
                print(line, flush=True)
        ratios = []
        for seed in arguments.seeds if "pruning" in chosen else []:
            line, ratio = pruning(Path(folder, f"seed-{seed}"), seed)
            ratios.append(ratio)
            print(line, flush=True)
    if len(ratios) > 1:
        ratios.sort()
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        median = statistics.median(ratios)
        print(f"epochs with ASHA over epochs without: {median:.2f} (of {each}; goal below 1)")


if __name__ == "__main__":
    main()
