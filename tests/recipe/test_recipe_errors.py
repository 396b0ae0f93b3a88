"""Errors of a recipe: a line for each mistake, all at once, exit code 2."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from torch import Tensor

import timm_ktg as ktg
from tests.recipe_cases import (
    LABEL_ONLY,
    TWO,
    Refused,
    Values,
    changed,
    problems_of,
    recipe,
    save_weights,
    write,
)
from tests.tiny_data import rows
from timm_ktg.train.__main__ import main

pytestmark = pytest.mark.usefixtures("workplace")

STUDENT = "graph.nodes.student"
HELPER = "graph.nodes.helper"
SOURCES = f"{STUDENT}.learns_from"
LABEL = f"{STUDENT}.learns_from.label"
NET = {"model": "resnet8_cifar"}

# Mistakes found in the recipe alone: (changed key, new value, message).
MISTAKES: list[tuple[str, Any, str]] = [
    ("trian", {}, r"unknown key\. Did you mean `train`"),
    ("graph.targt", "student", r"unknown key\. Did you mean `target`"),
    ("data.dataste", "digits", r"unknown key\. Did you mean `dataset`"),
    ("train.bach_size", 2, r"unknown key\. Did you mean `batch_size`"),
    ("train.zzz", 1, r"unknown key\. Keys: epochs, .*batch_size"),
    (f"{STUDENT}.model_kwarg", {}, r"unknown key\. Did you mean `model_kwargs`"),
    (f"{STUDENT}.model", "resnet8_cifr", r".*`resnet8_cifr`.*Did you mean `resnet8_cifar`"),
    ("train.opt", "sdg", r".*`sdg`.*Did you mean `sgd`"),
    ("train.sched", "multistp", r".*`multistep`.*Found 'multistp'.*Did you mean `multistep`"),
    ("train.lr", "fast", r".*Found 'fast'"),
    ("train.epochs", 0, r".*Found 0"),
    ("train", None, r".*Found None"),
    ("data.dataset", 3, r".*Found 3"),
    ("data.aa", "rand-m9", r"has no effect unless data\.pipeline is timm"),
    (
        "data.mixup_prob",
        0.5,
        r"has no effect unless data\.mixup or data\.cutmix is above 0\. .*1\.0",
    ),
    ("data.mixup_switch_prob", 0.9, r"has no effect unless data\.mixup and data\.cutmix are above"),
    ("data.mean", [0.5, 0.5, 0.5], r".*mean and std"),
    ("graph.target", "studnt", r"`studnt` is not a node\. Nodes: .* Did you mean `student`"),
    ("graph.keep", ["helpr"], r"`helpr` is not a node.*Did you mean `helper`"),
    ("graph.reduction", "avg", r".*`mean`.*Found 'avg'"),
    ("graph.nodes.a-b", NET | LABEL_ONLY, r".*Found `a-b`"),
    ("graph.nodes.label", NET, r"`label` is the name of the label"),
    (SOURCES, {"lable": "through"}, r"`lable` is not a node\..* Did you mean `label`"),
    (SOURCES, {"helpr": "linear"}, r"`helpr` is not a node\. Nodes: helper, student.*`helper`"),
    (SOURCES, {"label": "through", "student": "through"}, "`student` cannot learn from itself"),
    (f"{HELPER}.checkpoint_path", "w.pth", r".*Found nothing at `w\.pth`"),
    (LABEL, 3, r".*Found 3"),
]
# The same if the message names another place: (..., place, message).
MISTAKES_ELSEWHERE: list[tuple[str, Any, str, str]] = [
    (SOURCES, {}, "graph.target", "the target `student` should learn from something"),
    (SOURCES, {"label": "cutoff"}, "graph.target", "the target `student` should learn from"),
    (f"{HELPER}.learns_from", {}, HELPER, r".*frozen and should have weights"),
    (f"{HELPER}.learns_from", {"label": "cutoff"}, HELPER, r".*frozen and should have weights"),
    (LABEL, "throgh", f"{LABEL}.gate", r"`throgh` is not a gate\. .*Did you mean `through`"),
    (LABEL, {"gat": "linear"}, f"{LABEL}.gat", r"unknown key\. Did you mean `gate`"),
    (LABEL, {"temperature": 2}, f"{LABEL}.temperature", r"should be 1 on .*the label\. Found 2"),
    (SOURCES, {"helper": {"temperature": 0}}, f"{SOURCES}.helper.temperature", r".*Found 0"),
    (LABEL, {"loss": "kl_dv"}, f"{LABEL}.loss", r"`kl_dv` is not a loss\. .*Did you mean `kl_div`"),
    (LABEL, {"loss_kwargs": {"a": 1}}, f"{LABEL}.loss_kwargs", r".*should come with `loss`"),
    (
        LABEL,
        {"gate": "linear", "gate_kwargs": {"threshold": 0.9}},
        f"{LABEL}.gate",
        r"gate `linear` takes no argument `threshold`\. It takes none",
    ),
    (
        LABEL,
        {"gate": "confident", "gate_kwargs": {"treshold": 0.9}},
        f"{LABEL}.gate",
        r"gate `confident` takes no argument `treshold`\. .*Did you mean `threshold`",
    ),
    (
        LABEL,
        {"loss": "cross_entropy", "loss_kwargs": {"smoothin": 0.1}},
        f"{LABEL}.loss",
        r"loss `cross_entropy` takes no argument `smoothin`\. .*Did you mean `smoothing`",
    ),
    ("data", {"pipeline": "timm", "pad": 2}, "data.pad", r"has no effect .* data\.pipeline is mem"),
    (
        "data",
        {"mixup": 0.2, "mixup_mode": "elem", "mixup_switch_prob": 0.9},
        "data.mixup_switch_prob",
        r"has no effect unless data\.mixup and data\.cutmix are above 0\. .*0\.5",
    ),
    (LABEL, {"taps": "layer3"}, f"{LABEL}.taps", r"should come with a loss .*such as attention"),
    (SOURCES, {"helper": {"loss": "dkd", "taps": "layer3"}}, f"{SOURCES}.helper.taps", "should co"),
    ("data", {"std": [1, 1, 1]}, "data.mean", r"mean and std should be given together"),
    ("data", {"holdout": 2, "val_split": "valid"}, "data.holdout", r"should be 0 .*val_split"),
    ("graph.nodes", {"student": NET | LABEL_ONLY, 1: NET | LABEL_ONLY}, "graph.nodes.1", ""),
]


def confident(losses: Tensor, context: ktg.EdgeContext, *, threshold: float = 0.8) -> Tensor:
    return losses * (context.source.logits.softmax(-1).amax(-1) >= threshold)


def student(**fields: Any) -> dict[str, Values]:
    return {"student": {**LABEL_ONLY, **fields}}


def by(gate: str, **arguments: Any) -> Any:
    return recipe({"learns_from": {"label": {"gate": gate, "gate_kwargs": arguments}}})


def test_recipe_that_is_changed_below_has_no_problem() -> None:
    assert problems_of(recipe(TWO, LABEL_ONLY)) == ()


@pytest.mark.parametrize(
    ("where", "value", "place", "said"),
    [(where, value, where, said) for where, value, said in MISTAKES] + MISTAKES_ELSEWHERE,
    ids=lambda value: str(value).removeprefix("graph.nodes.")[:40],
)
def test_mistake_costs_one_line(where: str, value: Any, place: str, said: str) -> None:
    ktg.register_gate(confident)
    problems = problems_of(changed(where, value))
    assert len(problems) == 1, problems
    assert re.match(rf"{re.escape(place)}: {said}", problems[0]), problems[0]
    assert "\n" not in problems[0]


def test_graph_without_nodes_costs_one_line() -> None:
    problems = problems_of(changed("graph.nodes", {}))
    assert len(problems) == 1 and re.match(r"graph\.(nodes|target): ", problems[0])


# Mistakes found when data and models are built: (arguments of `recipe`, line).
UNFIT: dict[str, tuple[dict[str, Values], str]] = {
    "hub id": (
        {"data": {"dataset": "uoft-cs/cifar"}},
        r"data\.dataset: `uoft-cs/cifar` .*offline.*Did you mean `uoft-cs/cifar10`",
    ),
    "image column": (
        {"data": {"input_key": "img"}},
        r"data\.input_key: `img` is no column\. Columns: image, label, name\. .*`image`",
    ),
    "label column": (
        {"data": {"target_key": "lable"}},
        r"data\.target_key: `lable` is no column\. .*Did you mean `label`",
    ),
    "image column of text": (
        {"data": {"input_key": "name"}},
        r"data\.input_key: `name`.*string",
    ),
    "label column of text": (
        {"data": {"target_key": "name"}},
        r"data\.target_key: `name`.*string.*: label",
    ),
    "split": ({"data": {"train_split": "trian"}}, r"data\.train_split: `trian`.*`train`"),
    "holdout": ({"data": {"holdout": 327}}, r"data\.holdout: .* 327 training images.*327"),
    "padding": ({"data": {"pad": 8}}, r"data\.pad: .*8x8.*8"),
    "batch": (
        {"train": {"batch_size": 5, "grad_accum_steps": 2}},
        r"train\.batch_size: should be a multiple of 2.*Found 5",
    ),
    "optimizer argument": (
        {"train": {"opt_kwargs": {"nestrov": True}}},
        r"train\.opt_kwargs: .*nestrov",
    ),
    "model argument": (
        student(model_kwargs={"stem_strid": 2}),
        r"graph\.nodes\.student\.model_kwargs: .*stem_strid",
    ),
    "classes": (student(model_kwargs={"num_classes": 5}), r"graph\.nodes\.student.* 10 .*Found 5"),
    "classes of one of two": (
        {"student": TWO, "helper": {**LABEL_ONLY, "model_kwargs": {"num_classes": 5}}},
        r"graph\.nodes\.helper\.model_kwargs: .* 10 .*Found 5",
    ),
    "tap": (student(taps=["layr1"]), r"graph\.nodes\.student\.taps: `layr1`.*`layer1`"),
    "image size": (
        student(model="vit_tiny_patch16_224", model_kwargs={"depth": 1, "img_size": 16}),
        r"graph\.nodes\.student.* images of 8x8: .*16",
    ),
    "pretrained tag": (student(model="resnet18.a1_in1"), r"graph\.nodes\.student.*a1_in1"),
    "name that torch reserves": (
        {
            "graph": {
                "nodes": {
                    "student": {**NET, "learns_from": {"training": "through"}},
                    "training": NET | LABEL_ONLY,
                }
            }
        },
        r"graph\.nodes\.training: `training` is a name that torch reserves",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_data_or_model_costs_one_line(case: str, refused: Refused) -> None:
    arguments, said = UNFIT[case]
    lines = refused(recipe(**arguments))
    assert len(lines) == 1 and re.match(said, lines[0]), lines


def test_misspelt_folder_costs_one_line(refused: Refused) -> None:
    Path("pets").mkdir()
    (line,) = refused(recipe(data={"dataset": "./petz"}))
    assert re.match(r"data\.dataset: `\./petz` .*`\./pets`", line), line


def test_empty_split_costs_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = DatasetDict(train=rows(6), test=rows(0))
    monkeypatch.setattr("datasets.load_dataset", lambda path, name: hub)
    lines = refused(recipe(data={"dataset": "someone/something"}))
    assert lines == ["data.test_split: `test` should hold images, it is empty."]


def wide(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses[:, None].expand(-1, 2)


def scalar(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses.mean()


def nothing(losses: Tensor, context: ktg.EdgeContext) -> Any:
    return None


def nan(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses / 0 - losses / 0


def detached(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses.detach()


def raising(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    raise KeyError("two\nlines")


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (wide, r"gate `wide` should return one loss per sample \[2\]\. Found \[2, 2\]"),
        (scalar, r"gate `scalar` should return one loss per sample \[2\]\. Found \[\]"),
        (nothing, r"gate `nothing` should return a tensor\. Found NoneType"),
        (nan, r"gate `nan` should return finite numbers\. Found \[nan, nan\]"),
        (detached, r"gate `detached` should return losses that gradients flow through"),
        (raising, r"gate `raising` should .*It raised KeyError: .*two\\nlines"),
    ],
)
def test_gate_that_breaks_its_contract_costs_one_line(
    gate: Any, said: str, refused: Refused
) -> None:
    ktg.register_gate(gate)
    lines = refused(by(gate.__name__))
    assert len(lines) == 1 and re.match(rf"{re.escape(LABEL)}\.gate: {said}", lines[0]), lines


@pytest.mark.parametrize("kind", ["gate", "loss"])
def test_contract_broken_only_at_work_costs_one_line(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fickle_gate(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        return losses.mean() if len(losses) == 64 else losses

    def fickle_loss(source: Any, destination: Any, labels: Any, *, temperature: float) -> Tensor:
        return destination.logits

    ktg.register_gate(fickle_gate)
    ktg.register_loss(fickle_loss)
    path = write(recipe({"learns_from": {"label": {kind: f"fickle_{kind}"}}}))
    capsys.readouterr()
    assert main([path]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "label" in lines[0] and f"`fickle_{kind}`" in lines[0], lines


def test_gate_made_for_the_classes_of_the_data_is_taken() -> None:
    def by_class(losses: Tensor, context: ktg.EdgeContext, *, weights: list[float]) -> Tensor:
        return losses * torch.tensor(weights)[context.source.logits.argmax(-1)]

    ktg.register_gate(by_class)
    assert main([write(by("by_class", weights=[0.5, 1.0] * 5)), "--dry-run"]) == 0


def test_all_mistakes_are_reported_in_one_go(refused: Refused) -> None:
    values = {
        "graph": {
            "target": "studnt",
            "reduction": "avg",
            "nodes": {
                "student": {
                    "model": "resnet8_cifr",
                    "learns_from": {"label": "throgh", "student": "linear", "helpr": "linear"},
                },
                "helper": {"model": "resnet8_cifar", "checkpoint_path": "w.pth", "tap": []},
            },
        },
        "data": {"holdut": 3, "vflip": 0.5, "mean": [0, 0, 0]},
        "train": {"lr": -1, "opt": "sdg", "epochs": "many", "sched": "multistp"},
        "serch": {},
    }
    places = [line.split(": ")[0] for line in refused(values)]
    assert sorted(places) == sorted(
        [
            *("graph.target", "graph.reduction", f"{STUDENT}.model", f"{LABEL}.gate"),
            *(SOURCES, SOURCES, f"{HELPER}.checkpoint_path", f"{HELPER}.tap"),
            *("data.holdut", "data.vflip", "data.mean"),
            *("train.lr", "train.opt", "train.epochs", "train.sched", "serch"),
        ]
    )


def test_mistakes_of_graph_and_data_are_reported_together(refused: Refused) -> None:
    values = changed(LABEL, "throgh")
    values["data"] |= {"input_key": "img", "target_key": "lable"}
    places = [line.split(": ")[0] for line in refused(values)]
    assert sorted(places) == ["data.input_key", "data.target_key", f"{LABEL}.gate"]


def test_unfit_nodes_are_reported_together(refused: Refused) -> None:
    nodes: Values = {
        "student": {**NET, **TWO, "taps": ["layr1"]},
        "helper": {**NET, "checkpoint_path": save_weights("four.safetensors", classes=4)},
        "third": {**NET, **LABEL_ONLY, "model_kwargs": {"num_classes": 5}},
    }
    training = {"batch_size": 5, "grad_accum_steps": 2}
    lines = refused(recipe(graph={"nodes": nodes, "keep": ["third"]}, train=training))
    assert sorted(line.split(": ")[0] for line in lines) == [
        f"{HELPER}.checkpoint_path",
        f"{STUDENT}.taps",
        "graph.nodes.third.model_kwargs",
        "train.batch_size",
    ]


def test_program_ends_with_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "timm_ktg.train.__main__")
    monkeypatch.setattr("sys.argv", ["timm_ktg.train", write(changed("train.lr", 0))])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("timm_ktg.train", run_name="__main__")
    assert ended.value.code == 2
    assert re.fullmatch(r"train\.lr: .*Found 0\.\n", capsys.readouterr().err)
