"""Copies of frozen nodes: BatchNorm folded, weights cast once, and the same outputs."""

import logging
import threading
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

from tests.nets import TinyNet, edge, graph_of, hard_labels, images, ktg_tiny, same
from tests.recipe_cases import recipe_values
from tests.training_cases import build, same_state, state_of
from timm_ktg import KnowledgeTransferGraph, Node
from timm_ktg.graph.inference import fold_batch_norm, inference_copy
from timm_ktg.graph.weights import export_node
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workbench")]


def trained(model: nn.Module, size: int = 32) -> nn.Module:
    """Give BatchNorm nontrivial weights and statistics; return the model in evaluation mode."""
    draw = torch.Generator().manual_seed(0)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(generator=draw)
        for _ in range(3):
            model(torch.randn(8, 3, size, size, generator=draw))
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet14_cifar", 0),
        ("wrn16_2_cifar", 6),  # in front of the blocks, behind an addition
        ("resnet18", 0),
        ("mobilenetv3_small_050", 0),  # BatchNorm and activation in one
        ("densenet121", 62),  # in front of the layers, behind a concatenation
        ("tf_efficientnet_b0", 0),  # convolutions that pad as they please
    ],
)
def test_copy_computes_the_same_without_batch_norm(name: str, left: int) -> None:
    torch.manual_seed(0)
    model = trained(timm.create_model(name, num_classes=7)).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    before = [value.clone() for value in model.state_dict().values()]
    copy = inference_copy(model, x)
    assert norms(copy) == left < norms(model)
    expected = output(model, x)
    torch.testing.assert_close(output(copy, x), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3
    assert same(list(model.state_dict().values()), before)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


class Odd(nn.Module):
    """Convolutions and BatchNorm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.seen, self.seen_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.again, self.again_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.without, self.without_norm = (
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3, track_running_stats=False),
        )
        self.standardised, self.standardised_norm = ScaledStdConv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice_norm(self.twice(self.twice(x)))
        seen = self.seen(x)
        x = self.seen_norm(seen) + seen
        x = self.again_norm(self.again(x)) + self.again_norm(x)
        x = self.without_norm(self.without(x))
        return self.standardised_norm(self.standardised(x)).flatten(1)


def test_what_cannot_be_folded_is_left() -> None:
    model = trained(Odd()).double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    copy = inference_copy(model, x)
    assert norms(copy) == norms(model)
    torch.testing.assert_close(output(copy, x), output(model, x))


class ByValue(nn.Module):
    """Its computation depends on its input values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(-x if x.sum() > 0 else x)).flatten(1)


class ByMode(ByValue):
    """Tracing it would change its computation."""

    def forward(self, x: Tensor) -> Tensor:
        sign = 1.0 if isinstance(x, torch.fx.Proxy) else -1.0
        return self.norm(self.conv(sign * x)).flatten(1)


class Faint(ByMode):
    """The same, with numbers too small for an absolute tolerance."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-6 * super().forward(x)


class Twice(nn.Module):
    """A convolution that runs twice, and a BatchNorm that does, each beside one of its own."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        norms = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = (first, first) if shared == "conv" else (first, second)
        self.norm1, self.norm2 = (norms[0], norms[0]) if shared == "norm" else norms

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x)))).mean((2, 3))


@pytest.mark.parametrize("shared", ["conv", "norm"])
def test_module_that_runs_twice_is_not_folded(shared: str) -> None:
    torch.manual_seed(0)
    model = trained(Twice(shared))
    x = images()
    torch.testing.assert_close(fold_batch_norm(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ByValue, ByMode, Faint])
def test_model_that_cannot_be_traced_is_copied_as_it_is(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    model, x = trained(kind()), torch.randn(3, 3, 8, 8)
    with caplog.at_level(logging.WARNING):
        copy = inference_copy(model, x)
    assert norms(copy) == 1 and "is not folded" in caplog.text
    assert torch.equal(output(copy, x), output(model, x))
    assert torch.equal(output(copy, -x), output(model, -x))


def test_copy_for_autocast_has_its_weights_cast_already() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7).eval()
    x = torch.randn(3, 3, 32, 32)
    copy = inference_copy(plain, x, torch.bfloat16)
    kinds = {
        type(module): module.weight.dtype for module in copy.modules() if hasattr(module, "weight")
    }
    assert kinds[nn.Linear] == kinds[nn.Conv2d] == torch.bfloat16
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}  # LayerNorm's stay
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output(copy, x), output(plain, x))


# In a graph


FROZEN_B = [edge("label", "a"), edge("b", "a")]


def frozen_graph() -> KnowledgeTransferGraph:
    graph = graph_of(*FROZEN_B, frozen=("b",))
    trained(graph.model("b"), size=8)
    return graph


def test_graph_teaches_by_the_copy_what_the_model_would() -> None:
    graph = frozen_graph()
    keys, expected = list(graph.state_dict()), graph(images())["b"].logits
    graph.speed_up_frozen(images())
    assert list(graph.state_dict()) == keys
    assert norms(graph.model("b")) == 1
    with torch.no_grad():
        graph.model("b").head.weight.zero_()  # which the copy does not see
    outputs = graph(images())
    torch.testing.assert_close(outputs["b"].logits, expected)
    graph.losses(outputs, hard_labels(), 0.5).total.backward()  # what autograd keeps of a teacher


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("by_node", [False, True])
def test_loaded_weights_reach_the_copy(by_node: bool, copied: bool) -> None:
    graph, other = frozen_graph(), frozen_graph()
    with torch.no_grad():
        other.model("b").head.weight.mul_(3.0)
    graph.speed_up_frozen(images())
    before = graph(images())["b"].logits
    loaded = deepcopy(graph) if copied else graph
    if by_node:
        loaded.model("b").load_state_dict(other.model("b").state_dict())
    else:
        loaded.load_state_dict(other.state_dict())
    expected = other(images())["b"].logits
    torch.testing.assert_close(loaded(images())["b"].logits, expected)
    if copied:
        assert torch.equal(graph(images())["b"].logits, before)


def test_copy_for_autocast_is_used_under_it_alone() -> None:
    graph = frozen_graph()
    plain = graph(images())["b"].logits
    graph.speed_up_frozen(images(), torch.bfloat16)
    assert torch.equal(graph(images())["b"].logits, plain)
    with torch.autocast("cpu", torch.bfloat16):
        cast = graph(images())["b"].logits
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), plain, rtol=0.05, atol=0.05)


class Precise(TinyNet):
    """Its head computes in float32 even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        head, self.head = self.head, nn.Identity()
        features = super().forward(x)
        self.head = head
        with torch.autocast("cpu", enabled=False):
            return head(features.float())


class Single(TinyNet):
    """It holds something that cannot be copied."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.lock = threading.Lock()


@pytest.mark.parametrize("kind", [Precise, Single])
def test_model_that_no_copy_computes_like_is_used_itself(
    kind: type[TinyNet], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = trained(kind(1), size=8)
    nodes = [Node("a", TinyNet(0)), Node("b", teacher, pretrained=True)]
    graph = KnowledgeTransferGraph(nodes, FROZEN_B, "a")
    with caplog.at_level(logging.WARNING):
        graph.speed_up_frozen(images(), torch.bfloat16)
    assert "computes without a copy" in caplog.text
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(graph(images())["b"].logits, output(teacher, images()))


def test_node_with_taps_is_not_copied_and_its_features_can_be_learnt_from() -> None:
    teacher = trained(TinyNet(1), size=8)
    nodes = [Node("a", TinyNet(0)), Node("b", teacher, taps=("act",), pretrained=True)]
    graph = KnowledgeTransferGraph(nodes, FROZEN_B, "a")
    graph.speed_up_frozen(images())
    outputs = graph(images())
    with torch.no_grad():
        assert torch.equal(outputs["b"].logits, teacher(images()))
    student = nn.Parameter(torch.zeros_like(outputs["b"].features["act"]))
    (student * outputs["b"].features["act"]).sum().backward()
    assert student.grad is not None


# In a training


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frozen_node_computes_with_a_copy(precision: str, tmp_path: Path) -> None:
    weights = tmp_path / "c.safetensors"
    export_node(ktg_tiny(norm=True), weights)
    frozen = {"model": "ktg_tiny", "model_kwargs": {"norm": True}, "checkpoint_path": str(weights)}
    nodes = {"a": {"model": "ktg_tiny", "learns_from": {"label": "through", "c": "through"}}}
    training = build(recipe_values({**nodes, "c": frozen}, mixed_precision=precision))
    before = state_of(training.graph.model("c"))
    ran: list[str] = []
    for name in ("a", "c"):
        training.graph.model(name).register_forward_hook(
            lambda model, images, output, name=name: ran.append(name)
        )
    metrics = train_epoch(training, start_epoch(training))
    assert training.images.val is not None
    found = evaluate(training, training.images.val, "val")
    assert set(ran) == {"a"}
    assert metrics["train/loss/c->a"] > 0 and "val/top1/c" in found
    assert same_state(state_of(training.graph.model("c")), before)
