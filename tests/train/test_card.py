"""The card of a run: what it says is true, and its code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.recipe_cases import Values, recipe_values
from tests.training_cases import run_main, stop_run, summary_of, train_run

pytestmark = pytest.mark.slow

NODES: Values = {
    "a": {"model": "resnet8_cifar", "learns_from": {"label": "through", "b": "correct"}},
    "b": {"model": "test_resnet", "learns_from": {"label": "through"}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("card") / "run", recipe_values(NODES))


def card_of(run: Path) -> str:
    return (run / "nodes" / "README.md").read_text()


def test_card_says_what_was_measured(run: Path) -> None:
    card, summary = card_of(run), summary_of(run)
    for name, found in summary["nodes"].items():
        row = rf"\| {name} \| .* \| {found['top1']:.2f} \| {found['top5']:.2f} \|"
        assert re.search(row, card), name
    assert "# a: resnet8_cifar" in card and "2 epochs, batch size 64" in card
    assert "flowchart LR" in card and "n_b -- " in card
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in card
    cost = summary["cost"]
    assert f"a takes {cost['inference_flops'] / 1e6:.1f} MFLOPs an image" in card
    assert f"has {cost['parameters']:,} parameters" in card


def test_head_of_the_card_is_read_by_the_hub(run: Path) -> None:
    _, head, _ = card_of(run).split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["library_name"] == "timm" and "license" not in values


def test_code_of_the_card_runs_where_the_card_lies(run: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", card_of(run), flags=re.DOTALL)
    assert len(blocks) == 2
    checks = "assert names[9] == '9' and len(model.class_names) == 10\n"
    command = [sys.executable, "-c", "".join(blocks) + checks]
    done = subprocess.run(command, cwd=run / "nodes", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_that_was_killed_gets_its_card_when_it_is_resumed(tmp_path: Path) -> None:
    run = stop_run(tmp_path / "run", recipe_values(NODES), epoch=2)
    assert not (run / "nodes").exists()
    assert run_main("--resume", run) == 0
    card = card_of(run)
    (run / "nodes" / "README.md").unlink()  # killed after it wrote its result
    assert run_main("--resume", run) == 0
    assert card_of(run) == card


def test_card_of_models_that_timm_did_not_build_names_load_run_alone(tmp_path: Path) -> None:
    nodes: Values = {"a": {"model": "ktg_tiny", "learns_from": {"label": "through"}}}
    card = card_of(train_run(tmp_path / "run", recipe_values(nodes)))
    assert "create_model" not in card and "load_run" in card
