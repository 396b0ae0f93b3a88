"""Losses and gates are called once, on what the nodes really return, before anything trains."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests.recipe_cases import Refused, recipe, write
from timm_ktg.train.__main__ import main

pytestmark = pytest.mark.usefixtures("workplace")

AT = r"graph\.nodes\.student\.learns_from\.helper"
Ends = tuple[ktg.NodeOutput, ktg.NodeOutput, Tensor]


def total(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return (source.logits - destination.logits).square().mean()


def detached(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return (source.logits - destination.logits).detach().square().mean(-1)


def infinite(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return destination.logits.mean(-1) / 0


def counting(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    calls.append(0)
    return destination.logits.mean(-1) * len(calls)


def changing(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    source.logits.zero_()
    return destination.logits.mean(-1)


def by_tap(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return destination.features["layer3"].flatten(1).square().mean(-1)


def by_index(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return destination.logits.gather(1, labels[:, None])[:, 0]


def drawing(source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Tensor:
    return destination.logits.mean(-1) * torch.rand(())


def gate_by_tap(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
    return losses * context.source.features["layer3"].flatten(1).mean(-1).sigmoid()


class one_tap(nn.Module):  # noqa: N801 (named as it is registered)
    def __init__(self, source: ktg.NodeOutput, destination: ktg.NodeOutput) -> None:
        super().__init__()
        (features,) = source.features.values()

    def forward(
        self, source: Any, destination: Any, labels: Tensor, *, temperature: float
    ) -> Tensor:
        return destination.logits.mean(-1)


class late(nn.Module):  # noqa: N801
    def __init__(self, source: ktg.NodeOutput, destination: ktg.NodeOutput) -> None:
        super().__init__()
        self.project = nn.LazyLinear(3)

    def forward(
        self, source: Any, destination: Any, labels: Tensor, *, temperature: float
    ) -> Tensor:
        projected: Tensor = self.project(destination.logits.float())
        return projected.square().mean(-1)


calls: list[int] = []
LOSSES = (total, detached, infinite, counting, changing, by_tap, by_index, drawing, one_tap, late)


@pytest.fixture(autouse=True)
def registered() -> None:
    for loss in LOSSES:
        ktg.register_loss(loss)
    ktg.register_gate(gate_by_tap)


def learning_by(taps: tuple[str, ...] = (), data: Any = None, **edge: Any) -> Any:
    student = {"taps": [*taps], "learns_from": {"label": "through", "helper": edge}}
    return recipe(student, {"taps": [*taps], "learns_from": {"label": "through"}}, data=data or {})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("total", r"one loss per sample \[2\]\. Found \[\]\."),
        ("detached", r"losses that gradients flow through\. Found an output detached"),
        ("infinite", r"finite numbers\. Found \[-?inf, -?inf\]\."),
        ("counting", r"the same for the same arguments\. Found two different answers\."),
        ("changing", r"a new tensor\. Found its arguments changed in place\."),
        (
            "by_tap",
            r"losses \[2\]\. It raised KeyError: 'layer3'\. Taps of the source: layer2; of the "
            r"destination: layer2\.",
        ),
    ],
)
def test_loss_that_breaks_its_contract_costs_one_line_before_training(
    loss: str, said: str, refused: Refused
) -> None:
    lines = refused(learning_by(("layer2",), loss=loss), "--dry-run")
    expected = f"{AT}\\.loss: loss `{loss}` should return {said}"
    assert len(lines) == 1 and re.match(expected, lines[0]), lines


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        (
            {"loss": "srd"},
            r": loss `srd` cannot be built: srd should get taps at both ends, equally many\. Found "
            r"features \[\]",
        ),
        (
            {"loss": "one_tap"},
            r": loss `one_tap` cannot be built: not enough values to unpack",
        ),
        (
            {"loss": "late"},
            r": a loss or a gate should know its shapes once it is built\. Found parameters of a ",
        ),
        (
            {"loss": "attention"},
            r"\.loss: loss `attention` says: attention should get taps at both",
        ),
        (
            {"loss": "hard", "temperature": 4},
            r"\.loss: loss `hard` says: hard should have temperat",
        ),
    ],
)
def test_loss_that_does_not_fit_its_ends_costs_one_line(
    edge: Any, said: str, refused: Refused
) -> None:
    (line,) = refused(learning_by(**edge), "--dry-run")
    assert re.match(AT + said, line), line


@pytest.mark.parametrize("loss", ["attention", "srd"])
def test_loss_of_features_may_train(loss: str) -> None:
    values = learning_by(("layer2",), loss=loss)
    assert main([write(values), "--dry-run"]) == 0


def test_dkd_with_mixed_labels_costs_one_line(refused: Refused) -> None:
    (line,) = refused(learning_by(loss="dkd", data={"mixup": 0.4}), "--dry-run")
    assert line.endswith("Found mixed labels [2, 10]; it does not go with mixup or cutmix.")


def test_all_broken_contracts_are_said_at_once(refused: Refused) -> None:
    values = learning_by(loss="total")
    values["graph"]["nodes"]["helper"]["learns_from"]["student"] = {"gate": "gate_by_tap"}
    assert [line.split(": ")[0] for line in refused(values, "--dry-run")] == [
        "graph.nodes.student.learns_from.helper.loss",
        "graph.nodes.helper.learns_from.student.gate",
    ]


@pytest.mark.parametrize(
    "edge", [{"loss": "by_tap"}, {"gate": "gate_by_tap"}, {"loss": "drawing"}, {"loss": "by_index"}]
)
def test_what_reads_taps_or_draws_may_train(edge: Any) -> None:
    assert main([write(learning_by(("layer3",), **edge)), "--dry-run"]) == 0


def test_loss_that_cannot_take_mixed_labels_is_refused_where_they_are_mixed(
    refused: Refused,
) -> None:
    (line,) = refused(learning_by(data={"mixup": 0.5}, loss="by_index"), "--dry-run")
    assert re.match(rf"{AT}\.loss: loss `by_index` should return", line)
