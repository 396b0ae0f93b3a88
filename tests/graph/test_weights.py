"""One node's weights in a file: written for timm, and read into nodes of other graphs."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.recipe_cases import LABEL_ONLY, TWO, Refused, Values, recipe, save_weights, write
from timm_ktg.errors import RecipeError
from timm_ktg.graph.inference import inference_copy
from timm_ktg.graph.weights import class_names_in, export_node, load_weights
from timm_ktg.recipe.recipe import check_recipe
from timm_ktg.train.__main__ import main
from timm_ktg.train.training import build_training

pytestmark = pytest.mark.usefixtures("workplace")

PATH = Path("nodes/student.safetensors")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
IMAGENET = (0.485, 0.456, 0.406)


def net(seed: int, model: str = "resnet8_cifar") -> Any:
    """A net that differs in every tensor from a net with another seed, statistics included."""
    torch.manual_seed(seed)
    made = timm.create_model(model, num_classes=10)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return made.eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def random_images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("model", ["resnet8_cifar", "wrn16_2_cifar", "test_vit", "test_resnet"])
def test_exported_node_is_read_by_timm_bit_for_bit(model: str) -> None:
    trained = net(1, model)
    export_node(trained, PATH, MEAN, STD)
    read = timm.create_model(model, num_classes=10, checkpoint_path=str(PATH))
    assert same(read, trained) and not same(net(2, model), trained)


def test_export_is_the_same_bytes_every_time() -> None:
    for name in ("a", "b"):
        export_node(net(1), Path(f"{name}.safetensors"), MEAN, STD)
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_export_takes_any_memory_format_and_shared_tensors() -> None:
    trained = net(1)
    export_node(trained, PATH)
    trained.to(memory_format=torch.channels_last)
    export_node(trained, Path("last.safetensors"))
    assert Path("last.safetensors").read_bytes() == PATH.read_bytes()
    tied = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    tied["second"].weight = tied["first"].weight
    export_node(tied, PATH)
    assert load_file(PATH).keys() == tied.state_dict().keys()
    assert torch.equal(load_file(PATH)["second.weight"], tied["first"].weight)


def test_export_leaves_the_model_alone() -> None:
    trained = net(1)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    export_node(trained, PATH)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_file_tells_its_normalisation() -> None:
    export_node(net(1), PATH, MEAN, STD)
    other = net(2)
    assert load_weights(other, str(PATH)) == {"mean": MEAN, "std": STD}
    assert same(other, net(1))
    export_node(net(1), PATH)
    assert load_weights(other, str(PATH)) == {}


def test_checkpoint_of_timm_is_read() -> None:
    state = {f"module.{key}": value for key, value in net(1).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, "timm.pth.tar")
    other = net(2)
    assert load_weights(other, "timm.pth.tar") == {} and same(other, net(1))


def teacher(helper: Values, **data: Any) -> tuple[Any, Any]:
    """The graph of a recipe with a frozen helper on images with the given normalization."""
    values = recipe(TWO, helper, data=data)
    graph = build_training(check_recipe(values), Accelerator()).graph
    assert graph.frozen == ("helper",)
    return graph, graph.network("helper")


def test_frozen_node_sees_images_normalised_as_it_learned_them() -> None:
    export_node(net(1), PATH, MEAN, STD)
    other_mean, other_std = [0.1, 0.2, 0.3], [0.3, 0.3, 0.4]
    helper = {"checkpoint_path": str(PATH)}
    graph, member = teacher(helper, mean=other_mean, std=other_std)
    assert same(member.model, net(1)) and (member.mean, member.std) == (MEAN, STD)
    pixels = random_images()
    given = normalised(pixels, tuple(other_mean), tuple(other_std))
    expected = net(1)(normalised(pixels, MEAN, STD))
    seen = graph(given)["helper"].logits
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(1)(given), expected, rtol=1e-2, atol=1e-2)


def test_frozen_node_of_the_same_normalisation_sees_images_untouched() -> None:
    export_node(net(1), PATH, MEAN, STD)
    graph, member = teacher({"checkpoint_path": str(PATH)}, mean=list(MEAN), std=list(STD))
    assert member.scale is None
    images = random_images()
    seen = graph(images)["helper"].logits
    assert torch.equal(seen, inference_copy(net(1), images)(images))
    torch.testing.assert_close(seen, net(1)(images).detach(), rtol=1e-4, atol=0.0)


def test_pretrained_node_sees_images_normalised_as_timm_says() -> None:
    export_node(net(1), PATH)
    overlay = {"file": str(PATH), "num_classes": 10, "mean": IMAGENET, "std": STD}
    helper = {"pretrained": True, "model_kwargs": {"pretrained_cfg_overlay": overlay}}
    graph, member = teacher(helper, mean=list(MEAN), std=list(STD))
    assert same(member.model, net(1))
    pixels = random_images()
    expected = net(1)(normalised(pixels, IMAGENET, STD))
    seen = graph(normalised(pixels, MEAN, STD))["helper"].logits
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_unfit_weights_cost_one_line(refused: Refused) -> None:
    def said(path: str, **fields: Any) -> str:
        lines = refused(recipe(TWO, {"checkpoint_path": path, **fields}))
        assert len(lines) == 1, lines
        place = f"graph.nodes.helper.checkpoint_path: `{path}` "
        assert lines[0].startswith(place), lines[0]
        return lines[0].removeprefix(place)

    right = save_weights("right.safetensors")
    assert "[4, 64] instead of [10, 64]" in said(save_weights("four.safetensors", classes=4))
    assert "no layer1.1.conv1.weight and 35 more" in said(right, model="resnet14_cifar")
    Path("half.safetensors").write_bytes(Path(right).read_bytes()[:2000])
    Path("junk.pth").write_bytes(b"junk")
    Path("empty.pth").touch()
    torch.save([1, 2], "list.pth")
    for path in ("half.safetensors", "junk.pth", "empty.pth", "list.pth"):
        assert re.match(r"cannot be read: \S+", said(path)), path
    state = timm.create_model("resnet8_cifar", num_classes=10).state_dict()
    torch.save({**state, "head.bias": torch.zeros(1)}, "surplus.pth")
    assert "Found head.bias, which the model lacks" in said("surplus.pth")
    del state["fc.bias"]
    torch.save(state, "missing.pth")
    assert "Found no fc.bias" in said("missing.pth")


def test_frozen_node_pretrained_for_other_classes_is_refused(refused: Refused) -> None:
    four = {"file": save_weights("four.safetensors", classes=4), "num_classes": 4}
    helper = {"pretrained": True, "model_kwargs": {"pretrained_cfg_overlay": four}}
    lines = refused(recipe(TWO, helper))
    assert len(lines) == 1
    assert re.match(r"graph\.nodes\.helper\.pretrained: .* 10 classes.*Found 4", lines[0])
    values = recipe(TWO, {**helper, **LABEL_ONLY})
    assert main([write(values), "--dry-run"]) == 0  # a node that learns gets a new classifier


def test_pretrained_weights_that_do_not_exist_are_refused(refused: Refused) -> None:
    lines = refused(recipe({**LABEL_ONLY, "pretrained": True}))
    assert len(lines) == 1 and re.match(r"graph\.nodes\.student\.pretrained: .*resnet8", lines[0])


def test_file_tells_its_classes() -> None:
    export_node(net(1), PATH, class_names=["cat", "dog"])
    assert class_names_in(PATH) == ("cat", "dog") and load_weights(net(2), str(PATH)) == {}
    export_node(net(1), PATH)
    torch.save(net(1).state_dict(), "plain.pth")
    assert class_names_in(PATH) == class_names_in("plain.pth") == ()


def test_frozen_node_that_has_the_classes_in_another_order_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    digits = list("0123456789")
    export_node(net(1), PATH, class_names=["1", "0", *digits[2:]])
    with pytest.raises(RecipeError) as caught:
        teacher({"checkpoint_path": str(PATH)})
    assert caught.value.problems == (
        "graph.nodes.helper.checkpoint_path: should have the classes in the order of the data. "
        "Found `1` for `0`.",
    )
    export_node(net(1), PATH, class_names=["zero", "one", *digits[2:]])
    teacher({"checkpoint_path": str(PATH)})
    assert caplog.messages == [
        "graph.nodes.helper.checkpoint_path: its class `zero` is taken for the data's `0`."
    ]
    caplog.clear()
    for names in (digits, []):
        export_node(net(1), PATH, class_names=names)
        teacher({"checkpoint_path": str(PATH)})
    assert not caplog.messages


def test_frozen_node_of_a_folder_tells_its_classes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def with_names(name: str, **arguments: Any) -> nn.Module:
        model: nn.Module = create(name, **(arguments | {"pretrained": False}))
        if arguments.get("pretrained"):
            model.pretrained_cfg |= {"num_classes": 10, "label_names": list("1023456789")}
        return model

    monkeypatch.setattr(timm, "create_model", with_names)
    with pytest.raises(RecipeError, match="helper.model: should have the classes in the order"):
        teacher({"pretrained": True})
