"""A study whose maker was killed is completed by the worker that comes next."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna import Study

from tests.study_cases import (
    JOBS,
    exit_codes,
    jobs_of,
    joined,
    journal,
    kill,
    pid_of,
    search_of,
    start_all,
    tell_pid,
)
from timm_ktg.errors import RecipeError
from timm_ktg.search.jobs import Jobs
from timm_ktg.search.journal import JOURNAL, Journal
from timm_ktg.search.space import build_choices
from timm_ktg.search.storage import open_storage
from timm_ktg.search.study import READY
from timm_ktg.search.worker import _prepare

pytestmark = pytest.mark.slow

MODELS = ["a", "b", "c"]


def prepare(study: Study) -> None:
    for model in MODELS:
        study.enqueue_trial({"model": model}, skip_if_exists=True)


def make_study(folder: Path) -> Study:
    return joined(folder, search_of(1), prepare)


def make_jobs(folder: Path) -> Study:
    return jobs_of(folder).study


MAKERS: dict[str, tuple[Callable[[Path], Study], list[str]]] = {
    "study": (make_study, MODELS),
    "jobs": (make_jobs, JOBS),
}


def killed_at(line: int, make: Callable[[Path], Study], folder: Path) -> None:
    """Make a study, and be killed before a line of its journal, counted from 0, is written."""
    append = Journal.append_logs

    def counted(self: Journal, logs: list[dict[str, Any]]) -> None:
        if len(journal(folder)) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, logs)

    Journal.append_logs = counted
    make(folder)


@pytest.mark.parametrize("name", MAKERS)
def test_search_study_whose_maker_is_killed_at_any_line_is_completed(
    tmp_path: Path, name: str
) -> None:
    make, enqueued = MAKERS[name]
    fork = multiprocessing.get_context("fork")
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole)
    lines = len(journal(whole))
    assert lines > len(enqueued)
    for line in range(lines):
        folder = tmp_path / str(line)
        folder.mkdir()
        process = fork.Process(target=killed_at, args=(line, make, folder))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(journal(folder)) == line
        study = make(folder)
        assert study.user_attrs[READY]
        waiting = [trial.system_attrs["fixed_params"] for trial in study.trials]
        assert [value for (value,) in map(dict.values, waiting)] == enqueued


def hang_while_making(folder: Path) -> None:
    def hangs(study: Study) -> None:
        study.enqueue_trial({"model": MODELS[0]})
        tell_pid(folder)
        signal.pause()

    joined(folder, search_of(1), hangs)


def test_search_worker_waits_for_one_that_makes_the_study_until_that_is_killed(
    tmp_path: Path,
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    maker = start_all(tmp_path, (hang_while_making, (tmp_path,)))
    pid_of(tmp_path)
    search = search_of(1, storage=str(tmp_path / JOURNAL))
    waiting = start_all(others, *[(joined, (others, search, prepare))] * 2)
    time.sleep(2)
    assert not (others / "codes").exists()
    kill(tmp_path)
    assert exit_codes(tmp_path, maker) == [-signal.SIGKILL]
    assert exit_codes(others, waiting) == [0, 0]
    study = make_study(tmp_path)
    assert [trial.system_attrs["fixed_params"]["model"] for trial in study.trials] == MODELS


def test_search_study_that_was_begun_with_other_choices_is_refused(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=killed_at, args=(2, make_jobs, tmp_path))
    process.start()
    process.join()
    with pytest.raises(RecipeError, match="was made with digits. Found cifar10."):
        Jobs("jobs", open_storage(search_of(1), tmp_path), JOBS, {"data": "cifar10"})


def test_search_controls_are_enqueued_once_though_their_worker_was_killed(tmp_path: Path) -> None:
    search = search_of(1, enqueue_controls=True)
    choices = build_choices(search)
    study = joined(tmp_path, search, partial(_prepare, search, choices))
    before = len(study.trials)
    _prepare(search, choices, study)  # the next worker, who cannot know how far the first one came
    assert len(study.trials) == before > 0
