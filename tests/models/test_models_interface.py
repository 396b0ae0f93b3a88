from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from tests.models.model_cases import (
    MODELS,
    create,
    each_model,
    each_small_model,
    images,
    stages,
    stir,
)

pytestmark = pytest.mark.slow

# Head


@each_model
def test_forward_is_features_then_head(name: str) -> None:
    model = create(name)
    features = model.forward_features(images())
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, model.num_features, 8, 8)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert torch.equal(model.fc(pooled), model(images()))
    assert torch.equal(model.forward_head(features), model(images()))


@each_model
def test_reset_classifier_changes_the_classes(name: str) -> None:
    model = create(name)
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(images()).shape == (2, 7)
    assert model.get_classifier() is model.fc and model.get_classifier(name_only=True) == "fc"
    assert not model.fc.bias.any() and not any(m.training for m in model.modules())


@each_model
def test_reset_classifier_to_zero_leaves_the_features(name: str) -> None:
    model = create(name)
    pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(images()), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(images()), model.forward_features(images()))


@each_model
def test_num_classes_zero_leaves_the_pooled_features(name: str) -> None:
    model = create(name, num_classes=0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(images()).shape == (2, model.num_features)


@each_small_model
def test_global_pool_sets_the_width_of_the_head(name: str) -> None:
    model = create(name, global_pool="catavgmax")
    assert model.head_hidden_size == 2 * model.num_features == model.fc.in_features
    model.reset_classifier(7)
    assert model.fc.in_features == 2 * model.num_features
    model.reset_classifier(7, "max")
    assert model.head_hidden_size == model.num_features == model.fc.in_features
    peaks = model.forward_features(images()).amax((2, 3))
    assert torch.equal(model.forward_head(model.forward_features(images()), True), peaks)


@each_small_model
def test_drop_rate_drops_pooled_features_in_training_only(name: str) -> None:
    model = create(name, drop_rate=0.5)
    features = torch.ones(8, model.num_features, 8, 8)
    assert (model.forward_head(features, pre_logits=True) == 1).all()
    dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_block_drop_rate_drops_inside_wrn_blocks_and_is_zero_by_default() -> None:
    rates = {m.p for m in create("wrn16_2_cifar").modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.0}
    model = create("wrn16_2_cifar", block_drop_rate=0.3)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 6
    assert not torch.equal(model.train()(images()), model(images()))
    with pytest.raises(TypeError, match="block_drop_rate"):
        create("resnet8_cifar", block_drop_rate=0.3)


# Input


@each_model
def test_in_chans_is_the_channels_of_the_input(name: str) -> None:
    model = create(name, in_chans=1)
    assert model.in_chans == 1 and model(images(chans=1)).shape == (2, 100)


@each_model
def test_stem_stride_shrinks_every_feature_map(name: str) -> None:
    model = create(name, stem_stride=2)
    assert [info["reduction"] for info in model.feature_info] == [2, 2, 4, 8]
    sizes = [x.shape[-1] for x in model.forward_intermediates(images(size=64))[1]]
    assert sizes == [32, 32, 16, 8]


@each_small_model
@pytest.mark.parametrize("size", [64, 33])
def test_model_takes_other_resolutions(name: str, size: int) -> None:
    assert create(name)(images(size=size)).shape == (2, 100)


# Features


@each_model
def test_features_only_agrees_with_feature_info(name: str) -> None:
    model = create(name, features_only=True)
    maps = model(images())
    assert model.feature_info.channels() == [x.shape[1] for x in maps] == stages(name)
    reductions = [32 // x.shape[-1] for x in maps]
    assert model.feature_info.reduction() == reductions == [1, 1, 2, 4]


@each_small_model
@pytest.mark.parametrize("out_indices", [(1, 3), (-3, -1), (0,), 2])
@pytest.mark.parametrize("feature_cls", ["list", "hook", "getter"])
def test_features_only_returns_the_intermediates(
    name: str, out_indices: Any, feature_cls: str
) -> None:
    extractor = create(name, features_only=True, out_indices=out_indices, feature_cls=feature_cls)
    indices = list(out_indices) if isinstance(out_indices, tuple) else out_indices
    expected = create(name).forward_intermediates(images(), indices, intermediates_only=True)
    maps = extractor(images())
    assert extractor.feature_info.channels() == [x.shape[1] for x in expected]
    assert len(maps) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))


@each_model
def test_forward_intermediates_ends_as_forward_features(name: str) -> None:
    model = create(name)
    final, maps = model.forward_intermediates(images())
    assert torch.equal(final, model.forward_features(images()))
    assert [x.shape[1] for x in maps] == stages(name)
    normed = model.forward_intermediates(images(), norm=True, intermediates_only=True)
    assert torch.equal(normed[-1], final)
    assert all(torch.equal(x, y) for x, y in zip(maps[:-1], normed[:-1], strict=True))


@each_small_model
def test_forward_intermediates_of_a_wrn_are_before_the_final_norm(name: str) -> None:
    final, maps = create(name).forward_intermediates(images())
    assert torch.equal(final, maps[-1]) == name.startswith("resnet")


@each_small_model
def test_forward_intermediates_stops_early(name: str) -> None:
    model = create(name)
    calls: list[str] = []
    for key in ("layer1", "layer2", "layer3"):
        model.get_submodule(key).register_forward_hook(lambda *_, key=key: calls.append(key))
    final, maps = model.forward_intermediates(images(), [0, 2], stop_early=True)
    assert calls == ["layer1", "layer2"]
    assert [x.shape[1] for x in maps] == [stages(name)[0], stages(name)[2]]
    assert final is maps[-1]


@each_small_model
def test_forward_intermediates_keeps_values_under_grad_checkpointing(name: str) -> None:
    model = create(name)
    expected = model.forward_intermediates(images(), intermediates_only=True)
    model.set_grad_checkpointing()
    maps = model.forward_intermediates(images(), intermediates_only=True)
    assert all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))


def test_forward_intermediates_refuses_other_formats() -> None:
    with pytest.raises(ValueError, match="output_fmt should be 'NCHW'. Found 'NLC'."):
        create("resnet8_cifar").forward_intermediates(images(), output_fmt="NLC")
    with pytest.raises(AssertionError, match="out of range"):
        create("resnet8_cifar").forward_intermediates(images(), [4])


@each_small_model
@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_prune_intermediate_layers_keeps_what_is_wanted(name: str, last: int) -> None:
    model = create(name)
    expected = model.forward_intermediates(images(), [last], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([last - 4], prune_norm=True) == [last]
    kept = {key.split(".")[0] for key, _ in model.named_parameters()}
    assert kept == {"stem", *(f"layer{i}" for i in range(1, last + 1))}
    assert model.num_features == model.head_hidden_size == stages(name)[last]
    assert torch.equal(model(images()), expected)
    assert torch.equal(model.forward_intermediates(images(), [last])[1][0], expected)


@each_small_model
def test_prune_intermediate_layers_keeps_norm_and_head_if_asked(name: str) -> None:
    model, expected = create(name), create(name)(images())
    assert model.prune_intermediate_layers(1, prune_head=False) == [3]
    assert torch.equal(model(images()), expected)


@each_model
def test_hooks_see_what_a_module_returned(name: str) -> None:
    model = create(name)
    seen: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _i, out: seen.append((out, out.clone())))
    model(images())
    assert len(seen) > 6 * MODELS[name][0]
    assert all(torch.equal(output, at_the_time) for output, at_the_time in seen)


# Tools


@each_model
def test_group_matcher_sorts_parameters_by_depth(name: str) -> None:
    model, blocks = create(name), 3 * MODELS[name][0]
    groups = group_parameters(model, model.group_matcher())
    assert sorted(groups) == list(range(blocks + 2))
    assert {key.split(".")[0] for key in groups[0]} == {"stem"}
    assert groups[blocks + 1] == ["fc.weight", "fc.bias"]
    assert any(key.startswith("norm") for key in groups[blocks]) == name.startswith("wrn")
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 5
    assert {key.split(".")[0] for key in coarse[2]} == {"layer2"}


@each_small_model
@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still what timm promises
def test_torchscript_gives_the_same_logits(name: str) -> None:
    model = create(name)
    stir(model)
    torch.testing.assert_close(torch.jit.script(model)(images()), model(images()))


@each_small_model
def test_fx_gives_the_same_logits(name: str) -> None:
    model = create(name)
    stir(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), model(images()))
