"""A trial in two processes: both stop together, and an exception on one ends both."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

import timm_ktg as ktg
from tests.recipe_cases import NO_AUGMENTATION, Values, write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from tests.train.test_distributed import logs, start_two
from tests.training_cases import finish, on_cpu, start
from timm_ktg.search import processes as worker_processes

pytestmark = [pytest.mark.slow, on_cpu]


def searching(*argv: str | Path) -> None:
    from timm_ktg.search.__main__ import main

    sys.exit(main([str(argument) for argument in argv]))


def interrupted(*argv: str | Path) -> None:
    """Search, with Ctrl-C in the first training: that of a frozen node's weights."""

    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    worker_processes.train_epoch = press  # type: ignore[assignment]
    searching(*argv)


def broken_on_one(rank: str, *argv: str | Path) -> None:
    """Search with a gate that raises in one process alone; the one of rank 0 has the study."""
    calls = [0]

    @ktg.register_gate
    def breaks(losses: torch.Tensor, context: ktg.EdgeContext) -> torch.Tensor:
        calls[0] += len(losses) == 32  # half a batch; what checks a gate gives it less
        if os.environ["RANK"] == rank and calls[0] > 7:
            raise RuntimeError("broken here alone")
        return losses

    searching(*argv)


def values(**search: Any) -> dict[str, Values]:
    found = search_values(**search)
    found["data"] |= NO_AUGMENTATION
    return found


def test_two_processes_search_as_one_does(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", values(final_seeds=[0]))
    processes = start_two(tmp_path, searching, recipe, "--output-dir", tmp_path / "run")
    assert finish(*processes) == [0, 0], logs(tmp_path)
    trials = study_in(tmp_path / "run", "s").trials
    states = [trial.state for trial in trials]
    assert len(trials) == 6
    assert TrialState.PRUNED in states and TrialState.COMPLETE in states
    assert set(states) <= {TrialState.PRUNED, TrialState.COMPLETE}
    rows = {row["name"]: row for row in result_in(tmp_path / "run")["rows"]}
    assert rows["best-1"]["test top1"]["n"] == 1
    assert run_search(recipe, "--output-dir", tmp_path / "one") == 0
    alone = study_in(tmp_path / "one", "s").trials
    for first, second in zip(alone, trials, strict=True):
        assert (second.params, second.state) == (first.params, first.state)
        assert second.intermediate_values == pytest.approx(first.intermediate_values)
    assert "trial 0" in (tmp_path / "0.log").read_text()
    assert "trial" not in (tmp_path / "1.log").read_text()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_exception_on_one_process_ends_both(rank: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", values(nodes=1, models=[], gates=["breaks"]))
    flags = (recipe, "--output-dir", tmp_path / "run")
    codes = finish(*start_two(tmp_path, broken_on_one, rank, *flags), deadline=120)
    assert None not in codes and 0 not in codes, logs(tmp_path)
    assert "broken here alone" in (tmp_path / f"{rank}.log").read_text()
    (trial,) = study_in(tmp_path / "run", "s").trials
    assert trial.state == TrialState.FAIL


def test_work_that_was_interrupted_is_done_at_the_next_start(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values(trials=1, top_k=0))
    flags = (recipe, "--output-dir", tmp_path / "run")
    assert finish(start(tmp_path / "log", interrupted, *flags)) == [130], logs(tmp_path)
    (first, _) = study_in(tmp_path / "run", "s/teachers").trials
    assert first.state == TrialState.RUNNING
    assert run_search(*flags) == 0
    states = [trial.state for trial in study_in(tmp_path / "run", "s/teachers").trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_what_is_wrong_with_a_recipe_ends_both_with_a_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", values(target_model="resnet8_cifra"))
    processes = start_two(tmp_path, searching, recipe, "--output-dir", tmp_path / "run")
    assert finish(*processes, deadline=120) == [2, 2]
    assert "Did you mean `resnet8_cifar`?" in logs(tmp_path)
    assert "Traceback" not in logs(tmp_path)
