"""Real workers of a suite, of which one is killed."""

import csv
import gzip
import json
import os
import runpy
import signal
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from accelerate.utils import patch_environment

from tests.disks import wait_for
from tests.recipe_cases import Values
from tests.suite.suite_values import suite_values, write_suite
from tests.training_cases import USE_CPU, finish, on_cpu, reset_accelerate, start, start_two
from timm_ktg.recipe.recipe import Recipe
from timm_ktg.recipe.suite_config import SuiteConfig, load_suite
from timm_ktg.records.result import RunResult
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.search import processes
from timm_ktg.search.processes import WorkerProcesses
from timm_ktg.suite import plan
from timm_ktg.suite.worker import SuiteWorker
from timm_ktg.train.program import create_accelerator

pytestmark = pytest.mark.slow


def suite_program(*argv: str | Path) -> None:
    """Be `python -m timm_ktg.suite`."""
    sys.argv = ["timm_ktg.suite", *map(str, argv)]
    runpy.run_module("timm_ktg.suite", run_name="__main__", alter_sys=True)


def suite_main(*argv: str | Path) -> int:
    from timm_ktg.suite.__main__ import main

    reset_accelerate()
    with patch_environment(accelerate_use_cpu=USE_CPU):
        return main([str(argument) for argument in argv])


def table(folder: Path) -> dict[tuple[str, str], Values]:
    with (folder / "results.csv").open() as file:
        return {(row["method"], row["seed"]): row for row in csv.DictReader(file)}


def figures(folder: Path) -> dict[tuple[str, str], str]:
    return {key: row["test_top1"] for key, row in table(folder).items()}


def test_workers_share_the_runs_and_a_killed_ones_run_is_done_by_another(tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["digits"]["train"]["epochs"] = 6
    suite = write_suite(tmp_path / "s.yml", values)
    workers = [
        start(tmp_path / f"{number}.log", suite_program, suite, "--output-dir", tmp_path / "two")
        for number in (0, 1)
    ]
    wait_for("epoch 3/6", tmp_path / "0.log", workers[0])
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    assert finish(*workers) == [-signal.SIGKILL, 0], (tmp_path / "1.log").read_text()
    alone = start(tmp_path / "2.log", suite_program, suite, "--output-dir", tmp_path / "one")
    assert finish(alone) == [0], (tmp_path / "2.log").read_text()
    assert len(table(tmp_path / "two")) == 9
    assert figures(tmp_path / "two") == figures(tmp_path / "one")  # the same seed, the same number


@on_cpu
def test_two_processes_train_a_run_together(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "s.yml", suite_values(bases=["alone"]))
    argv = (suite, "--output-dir", tmp_path / "runs", "--methods", "alone", "--seeds", "1")
    said = [tmp_path / "0.log", tmp_path / "1.log"]
    codes = finish(*start_two(tmp_path, suite_program, *argv))
    assert codes == [0, 0], [each.read_text() for each in said]
    assert figures(tmp_path / "runs").keys() == {("alone", "1")}
    assert "page" in said[0].read_text() and "page" not in said[1].read_text()


def test_suite_goes_on_after_a_change_and_says_what_is_left_out(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(workplace / "s.yml", suite_values())
    assert suite_main(suite, "--seeds", "0") == 0
    runs = workplace / "runs" / "s"
    assert figures(runs).keys() == {("alone", "0"), ("teacher", "0"), ("kd", "0")}
    (log,) = (runs / "logs" / "digits").glob("kd-*-seed-0.jsonl.gz")
    first, *epochs = [json.loads(line) for line in gzip.decompress(log.read_bytes()).splitlines()]
    assert first["recipe"]["train"]["seed"] == 0 and [each["epoch"] for each in epochs] == [1]

    values = suite_values()
    values["methods"]["kd"]["train"] = {"lr": 0.01}
    write_suite(suite, values)
    capsys.readouterr()
    assert suite_main(suite, "--seeds", "0") == 0
    assert capsys.readouterr().out.count("Training digits, ") == 1  # the changed one alone
    text = (runs / "results.md").read_text()
    assert "Left out" in text and "kd seed 0 (" in text
    assert suite_main(suite, "--seeds", "0") == 0
    assert "Training" not in capsys.readouterr().out


def test_teachers_of_another_data_set_are_trained_first(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values()
    digits = values["datasets"]["digits"]
    train = {**digits["train"], "epochs": 2}
    values["datasets"]["longer"] = {**digits, "train": train, "weights_from": "digits"}
    suite = write_suite(workplace / "s.yml", values)
    assert suite_main(suite, "--dry-run", "--seeds", "1") == 0
    said, *runs = capsys.readouterr().out.splitlines()
    assert said == "6 runs to train." and len(set(runs)) == 6  # each once
    assert suite_main(suite, "--datasets", "longer", "--methods", "kd", "--seeds", "1") == 0
    assert figures(workplace / "runs" / "s").keys() == {("teacher", "1"), ("kd", "1")}


def test_run_whose_teachers_weights_are_gone_names_the_way_out(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(workplace / "s.yml", suite_values())
    assert suite_main(suite, "--methods", "teacher", "--seeds", "0") == 0
    (teacher,) = (workplace / "runs" / "s" / "digits").glob("teacher-*/seed-0")
    (weights,) = (teacher / "nodes").glob("*.safetensors")
    weights.unlink()
    assert suite_main(suite, "--methods", "kd", "--seeds", "0") == 1
    folder = teacher.relative_to(workplace)
    assert f"safetensors is gone. Remove {folder} to train it again." in capsys.readouterr().out


def test_runs_that_fail_are_said_and_give_the_exit_code(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values(bases=["kd"])
    values["methods"]["alone"]["train"] = {"lr": 1e30}
    suite = write_suite(workplace / "s.yml", values)
    assert suite_main(suite, "--seeds", "0") == 1
    said = capsys.readouterr()
    assert "digits, alone, seed 0 is missing: " in said.out
    assert said.err.startswith("1 run(s) failed: digits, alone, seed 0")
    assert figures(workplace / "runs" / "s").keys() == {("teacher", "0"), ("kd", "0")}


def test_run_that_fails_is_not_trained_by_the_workers_that_were_there(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values(bases=["alone"])
    values["methods"]["alone"]["train"] = {"lr": 1e30}
    suite = load_suite(write_suite(workplace / "s.yml", values))
    reset_accelerate()
    with patch_environment(accelerate_use_cpu=USE_CPU):
        create_accelerator(suite.recipe("digits", "alone", 0, {}))
    first, second = (worker_of(suite, workplace) for _ in range(2))
    runs = first.left(["digits"], ["alone"], [0])

    def trained(worker: SuiteWorker) -> int:
        worker.work(runs)
        return capsys.readouterr().out.count("Training digits, alone")

    assert trained(first) == 1 and trained(second) == 0
    later = worker_of(suite, workplace)
    assert trained(later) == 1
    assert first.missing == second.missing == later.missing
    assert first.missing["digits, alone, seed 0"].startswith("TrainingError: The loss of node a")


def worker_of(suite: SuiteConfig, folder: Path) -> SuiteWorker:
    return SuiteWorker(suite, folder / "runs", folder / "results.csv", WorkerProcesses())


def test_out_of_memory_fails_its_run_and_not_the_worker(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_seed = processes.run_seed

    def full(recipe: Recipe, seed: int, directory: RunDirectory) -> RunResult:
        if "alone" in str(directory.path):
            raise torch.OutOfMemoryError("out of memory")
        return run_seed(recipe, seed, directory)

    monkeypatch.setattr(processes, "run_seed", full)
    suite = write_suite(workplace / "s.yml", suite_values(bases=["kd"]))
    assert suite_main(suite, "--seeds", "0") == 1
    said = capsys.readouterr()
    assert "digits, alone, seed 0 is missing: " in said.out and "out of memory" in said.out
    assert figures(workplace / "runs" / "s").keys() == {("teacher", "0"), ("kd", "0")}


def test_mistakes_take_a_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write_suite(workplace / "s.yml", suite_values())
    for argv, said in (
        ([suite, "--methods", "kdd"], "methods: kdd is not in the suite. It has alone, teacher"),
        ([suite, "--seeds", "9"], "seeds: 9 is not in the suite. It has 0, 1, 2."),
        ([suite, "--data", "digits"], "data: should be NAME=PATH. Found digits."),
        (["none.yml"], "suite: should be a file. Found nothing at none.yml."),
    ):
        assert suite_main(*argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(said), line
    assert not (workplace / "runs").exists()


def test_methods_of_one_precision_at_a_time(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values()
    values["methods"]["alone"]["train"] = {"mixed_precision": "bf16"}
    suite = write_suite(workplace / "s.yml", values)
    assert suite_main(suite, "--seeds", "0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "train.mixed_precision: should be the same for all trainings of a command"
    )
    assert "Found bf16, no." in line and "--datasets, --methods" in line
    assert suite_main(suite, "--seeds", "0", "--methods", "alone") == 0
    assert suite_main(suite, "--seeds", "0", "--methods", "kd") == 0
    rows = table(workplace / "runs" / "s")
    assert set(rows) == {("alone", "0"), ("teacher", "0"), ("kd", "0")}


def test_teacher_of_another_precision_is_trained_first_by_itself(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values()
    values["methods"]["teacher"]["train"] = {"mixed_precision": "bf16"}
    suite = write_suite(workplace / "s.yml", values)
    assert suite_main(suite, "--seeds", "0", "--methods", "kd") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Found bf16, no." in line and "teachers first" in line
    assert suite_main(suite, "--seeds", "0", "--methods", "teacher") == 0
    assert suite_main(suite, "--seeds", "0", "--methods", "kd") == 0


def test_suite_has_the_device_that_it_names(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = suite_values()
    values["methods"]["alone"]["train"] = {"device": "cuda:99"}
    suite = write_suite(workplace / "s.yml", values)
    assert suite_main(suite, "--methods", "alone") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.device: ") and "should be the same" not in line
    assert suite_main(suite) == 2
    assert "train.device: should be the same for all trainings" in capsys.readouterr().err


def test_row_names_what_trained_the_run_and_not_what_wrote_it_down(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write_suite(workplace / "s.yml", suite_values())
    assert suite_main(suite, "--seeds", "0", "--methods", "alone") == 0
    runs = workplace / "runs" / "s"
    before = table(runs)
    (runs / "results.csv").unlink()
    monkeypatch.setattr(plan, "_git", lambda *_: "later")
    assert suite_main(suite, "--seeds", "0", "--methods", "alone") == 0
    assert table(runs) == before
    (runs / "results.csv").unlink()
    for file in (runs / "digits").rglob(".*.commit"):
        file.unlink()  # as earlier versions left it
    assert suite_main(suite, "--seeds", "0", "--methods", "alone") == 0
    assert table(runs)["alone", "0"]["commit"] == metadata.version("timm_ktg")


def test_dry_run_says_what_would_be_trained(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(workplace / "s.yml", suite_values())
    assert suite_main(suite, "--dry-run", "--methods", "kd", "--seeds", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["2 runs to train.", "  digits, teacher, seed 2", "  digits, kd, seed 2"]
    assert not (workplace / "runs").exists()
