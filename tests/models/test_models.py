from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.model_cases import MODELS, create, each_model, each_small_model, images, stir
from timm_ktg.models.cifar_resnet import PadShortcut

pytestmark = pytest.mark.slow

# The architecture


def test_registry_lists_these_models_and_no_others() -> None:
    listed = timm.list_models(module="cifar_resnet") + timm.list_models(module="cifar_wrn")
    assert sorted(listed) == sorted(MODELS)
    assert set(MODELS) <= set(timm.list_models("*_cifar"))


@each_model
def test_model_has_the_known_number_of_parameters(name: str) -> None:
    model = create(name)
    assert sum(p.numel() for p in model.parameters()) == MODELS[name][1]


@each_model
def test_depth_is_the_one_in_the_name(name: str) -> None:
    # He et al. count the classifier, Zagoruyko and Komodakis the three shortcuts instead.
    model, n = create(name), MODELS[name][0]
    depth = sum(isinstance(m, nn.Conv2d) for m in model.modules()) + name.startswith("resnet")
    assert depth == 6 * n + (2 if name.startswith("resnet") else 4)
    assert name.startswith((f"resnet{depth}_", f"wrn{depth}_2_"))
    assert [len(model.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [n, n, n]


def test_resnet_shortcut_has_no_parameters() -> None:
    shortcuts = [m.shortcut for m in create("resnet20_cifar").modules() if hasattr(m, "shortcut")]
    assert [type(s) for s in shortcuts].count(PadShortcut) == 2
    assert [type(s) for s in shortcuts].count(nn.Identity) == 7
    assert not [p for s in shortcuts for p in s.parameters()]


@pytest.mark.parametrize("size", [8, 7])
def test_pad_shortcut_subsamples_and_appends_zeros(size: int) -> None:
    x = images(size=size)
    out = PadShortcut(3, 5, stride=2)(x)
    assert out.shape == F.conv2d(x, torch.zeros(5, 3, 3, 3), stride=2, padding=1).shape
    for i, j in ((0, 0), (1, 2), (3, 3)):
        assert torch.equal(out[:, :3, i, j], x[:, :, 2 * i, 2 * j])
    assert not out[:, 3:].any()


def bn(x: Tensor, w: dict[str, Tensor], key: str) -> Tensor:
    def per_channel(field: str) -> Tensor:
        return w[f"{key}.{field}"][:, None, None]

    scaled = (x - per_channel("running_mean")) / (per_channel("running_var") + 1e-5).sqrt()
    return scaled * per_channel("weight") + per_channel("bias")


def resnet_by_hand(x: Tensor, w: dict[str, Tensor], blocks: int) -> Tensor:
    x = bn(F.conv2d(x, w["stem.conv.weight"], padding=1), w, "stem.bn").relu()
    for key, stride in block_keys(blocks):
        y = F.conv2d(x, w[f"{key}.conv1.weight"], stride=stride, padding=1)
        y = bn(y, w, f"{key}.bn1").relu()
        y = bn(F.conv2d(y, w[f"{key}.conv2.weight"], padding=1), w, f"{key}.bn2")
        shortcut = torch.zeros_like(y)
        shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        x = (y + shortcut).relu()
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def wrn_by_hand(x: Tensor, w: dict[str, Tensor], blocks: int) -> Tensor:
    x = F.conv2d(x, w["stem.conv.weight"], padding=1)
    for key, stride in block_keys(blocks):
        y = bn(x, w, f"{key}.bn1").relu()
        if f"{key}.shortcut.weight" in w:
            x = F.conv2d(y, w[f"{key}.shortcut.weight"], stride=stride)
        y = F.conv2d(y, w[f"{key}.conv1.weight"], stride=stride, padding=1)
        x = x + F.conv2d(bn(y, w, f"{key}.bn2").relu(), w[f"{key}.conv2.weight"], padding=1)
    return bn(x, w, "norm.bn").relu().mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def block_keys(blocks: int) -> list[tuple[str, int]]:
    return [
        (f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
        for stage in (1, 2, 3)
        for block in range(blocks)
    ]


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("resnet8_cifar", resnet_by_hand),
        ("resnet20_cifar", resnet_by_hand),
        ("wrn16_2_cifar", wrn_by_hand),
    ],
)
def test_logits_agree_with_the_network_written_out(name: str, by_hand: Any) -> None:
    model = create(name).double()
    stir(model)
    x = images().double()
    expected = by_hand(x, model.state_dict(), MODELS[name][0])
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


# Weights


@each_model
def test_convolutions_start_he_normal_and_biases_at_zero(name: str) -> None:
    model = create(name)
    z = []
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        z.append(conv.weight.detach().flatten() * (fan_out / 2) ** 0.5)
        assert conv.bias is None
        assert abs(z[-1].std() - 1) < 5 / (2 * z[-1].numel()) ** 0.5
    assert abs(torch.cat(z).mean()) < 0.02
    assert 0.03 < (torch.cat(z).abs() > 2).float().mean() < 0.06  # a normal's tails: 0.0455
    assert not any(p.any() for key, p in model.named_parameters() if key.endswith("bias"))
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@each_small_model
def test_weights_depend_on_the_torch_seed_alone(name: str) -> None:
    first = create(name).state_dict()
    second = create(name).state_dict()
    other = timm.create_model(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@each_small_model
def test_dtype_casts_the_weights_one_would_get_without_it(name: str) -> None:
    plain, half = create(name).state_dict(), create(name, dtype=torch.bfloat16).state_dict()
    assert half["fc.weight"].dtype == torch.bfloat16
    assert all(torch.equal(plain[key].to(half[key].dtype), half[key]) for key in plain)


@each_small_model
def test_device_is_where_the_weights_are(name: str) -> None:
    model = timm.create_model(name, device="meta")
    model.reset_classifier(7)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@each_model
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = create(name, num_classes=10).train()
    F.cross_entropy(model(images(4)), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key


@each_small_model
def test_grad_checkpointing_keeps_the_gradients(name: str) -> None:
    gradients, saved = [], []
    for enable in (False, True):
        model = create(name).train()
        model.set_grad_checkpointing(enable)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t
        ):
            loss = model(images(4)).square().sum()
        saved.append(sum(kept))
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert saved[1] < saved[0]


# Checkpoints


@each_small_model
def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    model = create(name)
    stir(model)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(5)
    copy = timm.create_model(name, checkpoint_path=tmp_path / "weights.safetensors").eval()
    assert torch.equal(copy(images()), model(images()))


@each_model
def test_pretrained_without_weights_is_timms_error(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True)


@each_small_model
def test_given_weights_adapt_to_other_channels_and_classes(name: str, tmp_path: Path) -> None:
    model = create(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    args = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    other = create(name, num_classes=7, in_chans=1, **args)
    last_conv = {"resnet8_cifar": "layer3.0", "wrn16_2_cifar": "layer3.1"}[name] + ".conv2.weight"
    assert torch.equal(other.state_dict()[last_conv], model.state_dict()[last_conv])
    summed = model.stem.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(other.stem.conv.weight, summed)
    assert other(images(chans=1)).shape == (2, 7)


def test_saved_folder_remembers_the_architecture(tmp_path: Path) -> None:
    model = create("wrn16_2_cifar", stem_stride=2, num_classes=5)
    save_for_hf(model, tmp_path)
    copy = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert copy.stem.conv.stride == (2, 2)
    assert torch.equal(copy(images()), model(images()))


@each_model
def test_pretrained_cfg_describes_the_model(name: str) -> None:
    model = create(name)
    cfg, state = model.pretrained_cfg, model.state_dict()
    assert cfg["architecture"] == name and "url" not in cfg and "hf_hub_id" not in cfg
    assert cfg["num_classes"] == model.num_classes == len(state[cfg["classifier"] + ".weight"])
    assert cfg["input_size"][0] == model.in_chans == state[cfg["first_conv"] + ".weight"].shape[1]
    features = model.forward_features(torch.zeros(1, *cfg["input_size"]))
    assert features.shape[2:] == cfg["pool_size"]


def test_pretrained_cfg_carries_the_pixel_statistics_of_cifar100() -> None:
    config = timm.data.resolve_model_data_config(create("resnet8_cifar"))
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
    assert config["mean"] == (0.5071, 0.4865, 0.4409)
    assert config["std"] == (0.2673, 0.2564, 0.2762)
