"""The help of the command line: every field, with its value in the recipe."""

import re

import pytest

from tests.recipe_cases import LABEL_ONLY, recipe, write
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.graph_config import GraphConfig
from timm_ktg.recipe.node_config import EdgeConfig, NodeConfig
from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.recipe.tracking_config import TrackingConfig
from timm_ktg.recipe.train_config import TrainConfig
from timm_ktg.search.__main__ import main as search_main
from timm_ktg.train.__main__ import main

pytestmark = pytest.mark.usefixtures("workplace")

# The values of the recipe below, as the help shows them.
HELPED = {
    "graph.reduction": "mean",
    "graph.nodes.student.model": "resnet8_cifar",
    "graph.nodes.student.seed": "3",
    "graph.nodes.student.learns_from.label.gate": "linear",
    "graph.nodes.student.learns_from.helper.temperature": "2.0",
    "graph.nodes.helper.learns_from.student.gate": "through",  # an edge that is not there
    "train.lr": "0.05",
}


def test_help_lists_every_field_with_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learns = {"label": "linear", "helper": {"temperature": 2.0}}
    helped = recipe({"learns_from": learns, "seed": 3}, LABEL_ONLY, graph={"reduction": "mean"})
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as exited:
        main([write(helped), "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert exited.value.code == 0 and text.startswith("usage: accelerate launch -m timm_ktg.train")
    fields = {f"data.{name}": field for name, field in DataConfig.model_fields.items()}
    fields |= {f"train.{name}": field for name, field in TrainConfig.model_fields.items()}
    fields |= {f"graph.{name}": field for name, field in GraphConfig.model_fields.items()}
    del fields["graph.nodes"]
    for node, source in (("student", "helper"), ("helper", "student"), ("helper", "label")):
        own = f"graph.nodes.{node}"
        fields |= {f"{own}.{name}": field for name, field in NodeConfig.model_fields.items()}
        del fields[f"{own}.learns_from"]
        edge = f"{own}.learns_from.{source}"
        fields |= {f"{edge}.{name}": field for name, field in EdgeConfig.model_fields.items()}
    for name, field in fields.items():
        assert field.description, name
        entry = rf"--{re.escape(name)} \S+ {re.escape(' '.join(field.description.split()))} \("
        assert re.search(entry, text), name
    for flag in ("--output-dir", "--resume", "--overwrite", "--dry-run"):
        assert f"{flag}" in text
    for name, value in HELPED.items():
        found = re.search(rf"--{re.escape(name)} .*?\(default: (\S+)\)", text)
        assert found and found[1] == value, name


def test_help_of_a_search_lists_every_field_with_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as exited:
        search_main(["digits-search", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert exited.value.code == 0 and text.startswith("usage: accelerate launch -m timm_ktg.search")
    sections = {"search": SearchConfig, "data": DataConfig, "train": TrainConfig}
    for section, schema in {**sections, "tracking": TrackingConfig}.items():
        for name, field in schema.model_fields.items():
            assert field.description, name
            said = re.escape(" ".join(field.description.split()))
            entry = rf"--{section}\.{field.alias or name} \S+ {said} \(default: "
            assert re.search(entry, text), name
    assert '(default: ["through", "cutoff", "linear", "correct"])' in text
    assert "(default: resnet8_cifar)" in text and "--resume" in text


@pytest.mark.parametrize("command", [["digits", "--help"], ["--help", "--train.lr", "2"], ["-h"]])
def test_help_may_stand_anywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(command)
    assert exited.value.code == 0 and "--train.batch_size integer" in capsys.readouterr().out


def test_short_help_has_a_screen_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["digits", "--help"])
    short = re.findall(r"^  --([a-z0-9_.]+\.[a-z_0-9]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"train.lr", "graph.nodes.student.learns_from.slow.gate", "data.dataset"} <= {*short}
    assert not {"train.min_lr", "graph.nodes.alone.learns_from.student.gate"} & {*short}
    assert len(short) < 60
