import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.nets import TinyNet, images
from timm_ktg import NodeOutput
from timm_ktg.graph.node import Network, Node, Place
from timm_ktg.graph.taps import Taps


class Twice(nn.Module):
    """Runs `twice` two times, `never` not at all, and has a module that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.pair = nn.ReLU(), nn.ReLU(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.twice(self.twice(x)))[0]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_captured_outputs_are_those_of_a_manual_forward() -> None:
    model, x = TinyNet().eval(), images()
    taps = Taps(model, ("stem", "act", "head"))
    logits = model(x)
    captured = taps.read()
    stem = model.stem[1](model.stem[0](x))
    act = model.act(stem)
    assert list(captured) == ["stem", "act", "head"]
    assert torch.equal(captured["stem"], stem)
    assert torch.equal(captured["act"], act)
    assert captured["head"] is logits
    assert torch.equal(logits, model.head(act.flatten(1)))


def test_nested_module_is_captured_by_its_dotted_name() -> None:
    model, x = TinyNet(), images()
    taps = Taps(model, ("stem.0",))
    model(x)
    assert torch.equal(taps.read()["stem.0"], model.stem[0](x))


def test_model_with_hooks_is_untouched() -> None:
    plain, tapped, x = TinyNet(), TinyNet(), images()
    Taps(tapped, ("stem", "act"))
    assert torch.equal(tapped(x), plain(x))
    assert list(tapped.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(tapped.state_dict()[name], value)
    assert [name for name, _ in tapped.named_modules()] == [n for n, _ in plain.named_modules()]


@pytest.mark.parametrize("leave", [Taps.read, Taps.clear, Taps.remove])
def test_outputs_that_were_read_are_not_kept(leave: Callable[[Taps], Any]) -> None:
    model = TinyNet()
    taps = Taps(model, ("stem",))
    alive: list[weakref.ref[Tensor]] = []
    model.stem.register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out)))
    model(images())
    assert alive[0]() is not None, "the taps should have held it until now"
    leave(taps)
    assert alive[0]() is None


def test_many_steps_read_one_output_each() -> None:
    model = TinyNet()
    taps = Taps(model, ("stem",))
    for batch in (1, 2, 3):
        model(images(batch))
        assert taps.read()["stem"].shape[0] == batch


def test_forwards_that_nobody_reads_do_not_pile_up() -> None:
    # graph.model("a")(x) over a whole evaluation, say.
    model = TinyNet()
    taps = Taps(model, ("stem",))
    alive: list[weakref.ref[Tensor]] = []
    model.stem.register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out)))
    for _ in range(5):
        model(images())
    assert sum(ref() is not None for ref in alive) <= 1
    taps.remove()


def test_missing_name_suggests_the_nearest() -> None:
    expected = "`heed` is not a module of TinyNet. Did you mean `head`"
    with pytest.raises(ValueError, match=expected):
        Taps(TinyNet(), ("act", "heed"))


def test_missing_name_leaves_no_hook_behind() -> None:
    model = TinyNet()
    with pytest.raises(ValueError, match="is not a module"):
        Taps(model, ("act", "acct"))
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["", "stem.2", "weight"])
def test_name_of_no_submodule_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is not a module of TinyNet"):
        Taps(TinyNet(), (name,))


def test_same_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="different modules. Found act, act"):
        Taps(TinyNet(), ("act", "act"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("twice", "`twice` should run once in a forward. It ran 2 times."),
        ("never", "`never` should run once in a forward. It ran not at all."),
        ("pair", "`pair` should return one tensor. Found tuple."),
    ],
)
def test_output_that_is_not_one_tensor_is_refused_at_reading(name: str, sentence: str) -> None:
    model = Twice()
    taps = Taps(model, (name,))
    for _ in range(2):  # reading has cleared, so the second step says the same
        model(images())
        with pytest.raises(ValueError, match=sentence):
            taps.read()


@pytest.mark.parametrize("learns", [True, False])
def test_output_that_the_model_overwrites_is_refused_at_reading(learns: bool) -> None:
    model = timm.create_model("resnet10t", num_classes=10).train(learns)
    taps = Taps(model, ("layer1.0.bn1", "layer1.0.act1", "layer1"))
    with torch.set_grad_enabled(learns):
        model(torch.randn(2, 3, 32, 32))
    said = "The output of module `layer1.0.bn1` should not be overwritten. .* tap that module"
    with pytest.raises(ValueError, match=said):
        taps.read()
    taps = Taps(model, ("layer1.0.act1", "layer1"))
    with torch.set_grad_enabled(learns):
        model(torch.randn(2, 3, 32, 32))
    assert list(taps.read()) == ["layer1.0.act1", "layer1"]


def test_second_read_of_one_forward_is_refused() -> None:
    model = TinyNet()
    taps = Taps(model, ("act",))
    model(images())
    taps.read()
    with pytest.raises(ValueError, match="It ran not at all"):
        taps.read()


def test_remove_takes_all_hooks_off() -> None:
    model = TinyNet()
    taps = Taps(model, ("stem", "stem.0", "act"))
    other = Taps(model, ("act",))
    assert hooks(model) == 4
    taps.remove()
    assert hooks(model) == 1
    model(images())
    assert list(other.read()) == ["act"]
    with pytest.raises(ValueError, match="It ran not at all"):
        taps.read()


def test_gradients_flow_through_captured_outputs() -> None:
    model = TinyNet()
    taps = Taps(model, ("act",))
    model(images())
    taps.read()["act"].sum().backward()
    assert model.stem[0].weight.grad is not None
    assert model.stem[0].weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None


def test_capture_works_in_eval_mode_without_gradients() -> None:
    model = TinyNet().eval()
    taps = Taps(model, ("act",))
    with torch.no_grad():
        model(images())
    captured = taps.read()["act"]
    assert captured.shape == (8, 8, 2, 2)
    assert not captured.requires_grad


def test_capture_reads_right_after_a_failed_forward_was_cleared() -> None:
    model = TinyNet()
    taps = Taps(model, ("stem",))
    good, model.head = model.head, nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        model(images())
    taps.clear()
    model.head = good
    model(images(2))
    assert taps.read()["stem"].shape[0] == 2


def test_network_reads_right_after_a_failed_forward() -> None:
    model = TinyNet()
    network = Network(Node("a", model, taps=("stem",)), Place())
    good, model.head = model.head, nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        network(images())
    model.head = good
    found: NodeOutput = network(images(2))
    assert found.features["stem"].shape[0] == 2


@pytest.mark.parametrize(
    ("name", "options", "taps", "shapes"),
    [
        (
            "test_resnet",
            {},
            ("layer1", "layer4.0.act2"),
            # An 8x8 map after the stem's stride of 4, halved three times.
            [(2, 32, 8, 8), (2, 96, 1, 1)],
        ),
        # 4 patches of 16x16 and the class token, of 64 channels.
        ("test_vit", {"img_size": 32}, ("blocks.0.attn", "norm"), [(2, 5, 64), (2, 5, 64)]),
    ],
)
def test_timm_model_is_tapped(
    name: str, options: dict[str, Any], taps: tuple[str, ...], shapes: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **options).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    tapped = Taps(model, taps)
    assert torch.equal(model(x), expected)
    captured = tapped.read()
    assert [tuple(captured[tap].shape) for tap in taps] == shapes
    if name == "test_vit":
        assert torch.equal(captured["norm"], model.forward_features(x))
