"""No step of a training waits for the device: nothing in it reads a value back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loss_cases import ends, made
from tests.nets import hard_labels
from tests.recipe_cases import recipe_values
from tests.training_cases import build
from timm_ktg.graph.gates import list_gates
from timm_ktg.graph.losses import list_losses
from timm_ktg.train.loop import start_epoch, train_epoch
from timm_ktg.train.metrics import EpochMeter
from timm_ktg.train.training import Training

pytestmark = pytest.mark.slow

# Operators that copy a value to the host, or make a tensor whose shape depends on values.
WAITING = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
    *("nonzero", "masked_select", "unique", "_unique2", "unique_dim", "bincount"),
)
BUILT_IN = ("through", "linear", "negative_linear", "correct")


class Waiting(TorchDispatchMode):
    """Notes operators that an accelerator would make the host wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool
            for each in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waiting() -> Iterator[list[str]]:
    with Waiting() as mode:
        yield mode.seen


def steps(training: Training) -> list[str]:
    """Train for an epoch, and return the operators that waited before the meter was read."""
    seen: list[str] = []
    read = EpochMeter.read

    with pytest.MonkeyPatch.context() as patch, waiting() as found:

        def counted(meter: EpochMeter) -> Any:
            seen.extend(found)
            return read(meter)

        patch.setattr(EpochMeter, "read", counted)
        train_epoch(training, list(start_epoch(training)))
    return seen


def values(gate: str, **changes: Any) -> dict[str, Any]:
    recipe = recipe_values(epochs=1, **changes)
    for node in recipe["graph"]["nodes"].values():
        node["learns_from"] = dict.fromkeys(node["learns_from"], gate)
    return recipe


def test_what_waits_is_seen() -> None:
    values, mask = torch.ones(3), torch.tensor([True, False, True])
    with waiting() as seen:
        float(values[0]), values.sum().item(), bool(mask[0]), values[mask], mask.nonzero()
        assert len(seen) >= 5
        before = len(seen)
        torch.where(mask, values, 0.0), values[torch.tensor([0, 2])], (values * mask).sum()
        assert len(seen) == before


def test_every_built_in_gate_is_looked_at() -> None:
    of_the_tests = {"recording", "breaking", "learned"}
    assert set(list_gates()) - of_the_tests - {"cutoff"} == set(BUILT_IN)


@pytest.mark.parametrize("name", list_losses())
def test_no_loss_waits(name: str) -> None:
    source, destination = ends()
    destination.logits.requires_grad_()
    for features in destination.features.values():
        features.requires_grad_()
    loss = made(name, source, destination)
    with waiting() as seen:
        loss(source, destination, hard_labels(), temperature=1.0).mean().backward()
    assert seen == []


@pytest.mark.parametrize("gate", BUILT_IN)
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_no_step_waits_whatever_the_gate(gate: str, mixup: float) -> None:
    recipe = values(gate)
    recipe["data"]["mixup"] = mixup
    assert steps(build(recipe)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_grad": 1.0},
        {"clip_grad": 0.1, "clip_mode": "value"},
        {"clip_grad": 0.1, "clip_mode": "agc"},
        {"grad_accum_steps": 2, "smoothing": 0.1},
        {"mixed_precision": "bf16"},
    ],
)
def test_no_step_waits_whatever_the_training(changes: dict[str, Any]) -> None:
    assert steps(build(values("correct", **changes))) == []


def test_no_step_waits_with_other_losses() -> None:
    recipe = values("through")
    edge = {"gate": "linear", "loss": "kl_div", "temperature": 3.0}
    recipe["graph"]["nodes"]["a"]["learns_from"]["b"] = edge
    edge = {"gate": "linear", "loss": "cross_entropy"}
    recipe["graph"]["nodes"]["b"]["learns_from"]["a"] = edge
    assert steps(build(recipe)) == []
