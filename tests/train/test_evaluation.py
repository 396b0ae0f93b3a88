"""What a run shows and evaluates between its first update and its last."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_cases import PLAIN, recipe_values
from tests.tiny_data import UPDATES
from tests.train.test_synchronisation import waiting
from tests.training_cases import build, metrics_of, train_run, weights_of
from timm_ktg.records.metrics import SECONDS
from timm_ktg.terminal import run_bar
from timm_ktg.train import run as running
from timm_ktg.train.loop import train_epoch
from timm_ktg.train.metrics import EpochMeter
from timm_ktg.train.run import _under_bar

pytestmark = pytest.mark.slow


class Terminal(io.StringIO):
    """Standard error, as if a person read it."""

    def isatty(self) -> bool:
        return True


@contextmanager
def at_a_terminal() -> Iterator[Terminal]:
    with redirect_stderr(Terminal()) as stream:
        yield stream


def test_every_few_epochs_and_the_last_are_evaluated(tmp_path: Path) -> None:
    each = train_run(tmp_path / "each", recipe_values(epochs=5))
    few = train_run(tmp_path / "few", recipe_values(epochs=5, eval_interval=2))
    evaluated = [line["epoch"] for line in metrics_of(few) if "val/top1/a" in line]
    assert evaluated == [2, 4, 5]
    for with_all, line in zip(metrics_of(each), metrics_of(few), strict=True):
        assert {name: with_all[name] for name in line} == line
    assert weights_of(each) == weights_of(few)


def test_short_epoch_that_is_not_evaluated_has_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    took = iter([0.9, 0.9, 1.0, 0.9, 0.9])

    def train(*arguments: Any) -> dict[str, float]:
        return {**train_epoch(*arguments), SECONDS: next(took)}

    monkeypatch.setattr(running, "train_epoch", train)
    run = train_run(tmp_path / "run", recipe_values(epochs=5, eval_interval=2))
    lines = re.findall(r"^epoch (\d)/5 .* s$", capsys.readouterr().out, re.MULTILINE)
    assert lines == ["2", "3", "4", "5"]
    assert [line["epoch"] for line in metrics_of(run)] == [1, 2, 3, 4, 5]


def test_bar_shows_the_running_loss_and_the_time_that_the_whole_run_still_takes(
    tmp_path: Path,
) -> None:
    with at_a_terminal() as terminal:
        train_run(tmp_path / "run", recipe_values(PLAIN, epochs=20, log_interval=1))
    text = terminal.getvalue()
    form = rf"epoch (\d+)/20: .* (\d+)/{20 * UPDATES} \[.*<\d\d:\d\d, .*loss \d"
    drawn = [match.groups() for match in re.finditer(form, text.replace("\r", "\n"))]
    assert len(drawn) > 3
    for epoch, updates in drawn:
        assert int(updates) in range((int(epoch) - 1) * UPDATES, int(epoch) * UPDATES + 1)
    assert text.endswith("\r")  # nothing of the bar is left


@pytest.mark.parametrize(("interval", "shown"), [(2, True), (3, True), (1, False)])
def test_running_loss_is_read_once_in_an_interval_and_only_for_a_bar(
    interval: int, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = build(recipe_values(log_interval=interval))
    found: list[str] = []
    read = EpochMeter.read
    with at_a_terminal(), waiting() as seen, run_bar(0, UPDATES, shown) as bar:
        monkeypatch.setattr(EpochMeter, "read", lambda meter: (found.extend(seen), read(meter))[1])
        train_epoch(training, _under_bar(training, bar))
    assert found == ["_local_scalar_dense"] * (UPDATES // interval if shown else 0)


def test_running_loss_is_the_targets_mean_in_the_epoch() -> None:
    training = build(recipe_values())
    metrics = train_epoch(training, _under_bar(training, run_bar(0, UPDATES, False)))
    assert training.meter.running_loss() == pytest.approx(metrics["train/loss/a"], rel=1e-6)


def test_running_loss_of_an_ensemble_is_the_mean_of_its_members() -> None:
    nodes = {**recipe_values()["graph"]["nodes"], "both": {"ensemble": ["a", "b"]}}
    training = build(recipe_values(nodes, graph={"target": "both"}))
    metrics = train_epoch(training, _under_bar(training, run_bar(0, UPDATES, False)))
    expected = (metrics["train/loss/a"] + metrics["train/loss/b"]) / 2
    assert training.meter.running_loss() == pytest.approx(expected, rel=1e-6)
