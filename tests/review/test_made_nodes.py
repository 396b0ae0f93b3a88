"""Runs with ensembles and slow copies, side by side and in a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.records.result_cases import a_result
from timm_ktg.records.metrics import ALL_NETWORKS
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.review.__main__ import main
from timm_ktg.review.report import write_report
from timm_ktg.review.run_data import read_run
from timm_ktg.review.run_page import runs_page

NODES: dict[str, Any] = {
    "a": {
        "model": "resnet8_cifar",
        "learns_from": {
            "label": {"gate": "through", "weight": 0.1},
            "crowd": {"gate": "correct", "weight": 9.0},
            "b/attention": {"gate": "through", "loss": "attention", "taps": "layer3"},
            "slow": "linear",
        },
    },
    "b": {"model": "resnet14_cifar", "learns_from": {"label": "through"}},
    "crowd": {"ensemble": ["a", "b"], "combine": "probabilities"},
    "slow": {"ema": "a", "decay": 0.999, "warmup": True},
}
WEIGHTS = {"label->a": 0.1, "crowd->a": 6.0, "b->a/attention": 1.0, "slow->a": 0.5, "label->b": 1.0}


def write_run(folder: Path, shift: float = 0.0) -> Path:
    """Write the directory of a run of a graph of all kinds of nodes."""
    folder.mkdir()
    recipe = {"graph": {"target": "a", "nodes": NODES}, "train": {"epochs": 1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line: dict[str, float] = {"epoch": 1, "train/loss/a": 1.0, "train/loss/b": 1.0}
    line |= {f"train/weight/{edge}": weight for edge, weight in WEIGHTS.items()}
    line |= {f"train/top1/{name}": 80.0 for name in NODES}
    line |= {f"val/top1/{name}": 85.0 for name in (*NODES, ALL_NETWORKS)}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    top1 = {name: 88.0 + index + shift for index, name in enumerate((*NODES, ALL_NETWORKS))}
    RunDirectory(folder).write_result(a_result(top1, epochs=1))
    return folder


def test_report_has_a_row_for_every_node_and_all_networks_together(tmp_path: Path) -> None:
    page = runs_page([read_run(write_run(tmp_path / "run"))])
    rows = [(row["node"], row["model"], row["top1"].mean) for row in page["rows"]]
    assert rows == [
        ("a (target)", "resnet8_cifar", 88.0),
        ("b", "resnet14_cifar", 89.0),
        ("crowd", "ensemble of a, b (probabilities)", 90.0),
        ("slow", "slow copy of a, decay 0.999", 91.0),
        (ALL_NETWORKS, "mean of the logits", 92.0),
    ]
    said = [what for _, _, what in json.loads(page["figures"]["weight-0"][""].points)]
    assert said == [
        f"{edge.replace('->', ' → ')}\nepoch 1: {weight:.4g}" for edge, weight in WEIGHTS.items()
    ]


def test_report_draws_ensembles_and_slow_copies(tmp_path: Path) -> None:
    text = write_report([write_run(tmp_path / "run")]).read_text()
    for shape in ("hull-crowd", "band-crowd", "copy-a-slow", "edge-b-a-attention"):
        assert f'-{shape}"' in text
    for said in ("through, attention,", "taps=layer3", "correct, weight=9"):
        assert f"<!-- {said} -->" in text


def test_compare_takes_all_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name, shift)) for name, shift in (("x", 0.0), ("y", 2.0))]
    assert main(["compare", *runs, "--node", ALL_NETWORKS]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[2].strip() for row in rows] == [ALL_NETWORKS] * 2
    assert [(row[5].strip(), row[8].strip()) for row in rows] == [
        ("92.00", "-"),
        ("94.00", "+2.00"),
    ]
    assert main(["compare", *runs, "--node", "crwd"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "`crwd` is no node. Nodes: a, b, crowd, slow, all-networks. Did you mean `crowd`?"
    )
