"""Workers of a search that train nothing: real processes that share a journal."""

import gc
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from optuna import Study, Trial, TrialPruned

from tests.training_cases import DEADLINE, finish, start
from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.search.jobs import Jobs
from timm_ktg.search.journal import JOURNAL
from timm_ktg.search.objective import claim
from timm_ktg.search.pruning import build_pruner, rungs
from timm_ktg.search.sampler import GraphSampler, suggest
from timm_ktg.search.space import Choices, build_choices
from timm_ktg.search.storage import open_storage
from timm_ktg.search.study import Objective, open_study, run_trials
from timm_ktg.search.trials import finished, note
from timm_ktg.train.metrics import TrainingError

EPOCHS = 40
MODELS = [f"resnet{layers}_cifar" for layers in (8, 14, 20, 32, 44, 56, 110)]
GATES = ["through", "cutoff", "linear", "correct", "negative_linear"]
JOBS = ["a", "b", "c", "d", "e"]

Call = tuple[Callable[..., None], tuple[Any, ...]]


def search_of(trials: int, **values: Any) -> SearchConfig:
    """Return a search among 2,564 graphs; a third node would only make the journal longer."""
    defaults = {"nodes": 2, "target_model": MODELS[0], "models": MODELS, "gates": GATES}
    return SearchConfig.model_validate({**defaults, "trials": trials, **values})


def value_at(number: int, epoch: int) -> float:
    """The reports of trial `number`: few different values, so that some are equal."""
    return float(random.Random(f"{number} {epoch}").randrange(60))


def fails(number: int) -> bool:
    """Return whether a trial fails after its fourth rung; its values are high."""
    return number % 8 == 3


def joined(folder: Path, search: SearchConfig, prepare: Callable[[Study], None]) -> Study:
    """Make or join the study, as a worker of a search does."""
    sampler = GraphSampler(build_choices(search), search.sampler, search.seed, search.unique)
    storage, pruner = open_storage(search, folder), build_pruner(search)
    return open_study("study", storage, sampler, pruner, {"search.nodes": 2}, prepare)


def objective_of(choices: Choices, pause: float, failing: bool) -> Objective:
    """Return an objective that notes its graph as in a search, with made-up values."""

    def objective(trial: Trial) -> float:
        graph = choices.graph(suggest(trial, choices))
        assert graph is not None
        claim(trial, graph.key)
        high = failing and fails(trial.number)
        for epoch in rungs(EPOCHS):
            if high and epoch > 8:
                raise TrainingError("diverged")
            time.sleep(pause * random.random())
            trial.report(value_at(trial.number, epoch) + 60.0 * high, step=epoch)
            if trial.should_prune():
                raise TrialPruned
        return value_at(trial.number, EPOCHS)

    return objective


def noted(path: Path, objective: Objective) -> Objective:
    """Return an objective that writes the numbers of its trials into a file."""

    def noting(trial: Trial) -> float:
        with path.open("a") as file:
            file.write(f"{trial.number}\n")
        return objective(trial)

    return noting


def work(folder: Path, search: SearchConfig, pause: float, failing: bool, enqueue: int) -> None:
    """Be a worker of a search."""
    choices = build_choices(search)
    valid = dict.fromkeys(choices.largest.choices(), MODELS[0])
    valid |= {name: "through" for name in valid if name.startswith("gate/")}

    def prepare(study: Study) -> None:
        for model in MODELS[:enqueue]:
            study.enqueue_trial({**valid, "model/aux1": model})

    study = joined(folder, search, prepare)
    objective = noted(
        folder / f"{os.getpid()}.numbers", objective_of(choices, pause, failing=failing)
    )
    enough = partial(has, trials=search.trials)
    run_trials(study, objective, enough, (TrainingError,))


def has(study: Study, trials: int) -> bool:
    return len(finished(study)) >= trials


def hang(folder: Path, search: SearchConfig, number: int) -> None:
    """Be a worker that hangs in the middle of a trial, with high values so far."""
    choices = build_choices(search)
    ordinary = objective_of(choices, 0.0, failing=False)

    def objective(trial: Trial) -> float:
        if trial.number < number:
            return ordinary(trial)
        note(trial, graph=str(suggest(trial, choices)))
        for epoch in (1, 2, 4):
            trial.report(1000.0, step=epoch)
            assert not trial.should_prune()
        tell_pid(folder)
        threading.Event().wait()
        raise AssertionError

    study = joined(folder, search, lambda study: None)
    run_trials(study, objective, partial(has, trials=search.trials))


def jobs_of(folder: Path) -> Jobs:
    return Jobs("jobs", open_storage(search_of(1), folder), JOBS, {"data": "digits"})


def do_jobs(folder: Path, hanging: str | None = None) -> None:
    """Be a worker that does jobs, or hangs in the middle of one."""

    def do(job: str, trial: Trial) -> float:
        if job == hanging:
            tell_pid(folder)
            threading.Event().wait()
        time.sleep(0.1)
        with (folder / f"{os.getpid()}.done").open("a") as file:
            file.write(f"{job}\n")
        return float(JOBS.index(job))

    jobs = jobs_of(folder)
    jobs.work(do)
    assert list(sorted(jobs.done())) == JOBS and jobs.failed() == {}


def tell_pid(folder: Path) -> None:
    partial_file = folder / "hangs.partial"
    partial_file.write_text(str(os.getpid()))
    partial_file.rename(folder / "hangs")


def pid_of(folder: Path) -> int:
    """Return the number of the process that hangs, as soon as it does."""
    end = time.monotonic() + DEADLINE
    while not (folder / "hangs").exists():
        assert time.monotonic() < end, logs(folder)
        time.sleep(0.05)
    return int((folder / "hangs").read_text())


def kill(folder: Path) -> None:
    """Kill the worker that has reported its number."""
    os.kill(pid_of(folder), signal.SIGKILL)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def lines(folder: Path, suffix: str) -> list[list[str]]:
    """Return what each worker wrote."""
    return [path.read_text().split() for path in sorted(folder.glob(f"*.{suffix}"))]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def start_all(folder: Path, *calls: Call) -> Any:
    """Start functions in as many processes, all at the same moment."""
    return start(folder / "workers.log", _fork, folder, calls)


def exit_codes(folder: Path, process: Any) -> list[int]:
    """Return the exit codes of what `start_all` started."""
    assert finish(process, deadline=DEADLINE + 30) == [0], logs(folder)
    codes: list[int] = json.loads((folder / "codes").read_text())
    return codes


def _fork(folder: Path, calls: tuple[Call, ...]) -> None:
    """Fork from one process that has imported everything, because an import takes seconds."""
    gc.freeze()  # otherwise a collection after each trial would copy all shared memory
    os.fsync = lambda fd: None  # 2 ms each, and only needed if the power fails
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(len(calls))
    processes = [fork.Process(target=_together, args=(barrier, *call)) for call in calls]
    for process in processes:
        process.start()
    (folder / "codes").write_text(json.dumps(finish(*processes)))


def _together(barrier: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    barrier.wait()
    function(*arguments)
