"""Settings with timm's names do what timm's training script does with them."""

import json
from argparse import Namespace
from typing import Any

import pytest
import timm
import torch
from timm.data import create_loader
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from tests.recipe_cases import TWO, changed, problems_of, recipe, save_weights
from timm_ktg.errors import RecipeError
from timm_ktg.graph.edge import Edge
from timm_ktg.graph.graph import KnowledgeTransferGraph
from timm_ktg.graph.node import Node
from timm_ktg.recipe.build import build_nodes
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.learner import prepare_to_learn
from timm_ktg.recipe.recipe import check_recipe, check_section
from timm_ktg.recipe.schedule import build_scheduler
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.recipe.train_config import TrainConfig
from timm_ktg.recipe.transform import build_transform
from timm_ktg.records.result import Preparation
from timm_ktg.train.checks import check_grad_checkpointing

PLATEAU = {"sched": "plateau"}
TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 2}


def vit(seed: int = 0, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", num_classes=4, **TINY, **more)


def rates(scheduler: Any, optimizer: Any, epochs: int, updates: int) -> list[float]:
    """The learning rate of every update of a training."""
    found = []
    for epoch in range(epochs):
        for update in range(updates):
            found.append(optimizer.param_groups[0]["lr"])
            scheduler.step_update(epoch * updates + update + 1)
        scheduler.step(epoch + 1)
    return found


@pytest.mark.parametrize("on_updates", [False, True], ids=["epochs", "updates"])
@pytest.mark.parametrize(
    "values",
    [
        {"sched": "cosine", "lr_cycle_limit": 3, "lr_cycle_decay": 0.3},
        {"sched": "tanh", "lr_cycle_limit": 2, "lr_cycle_mul": 1.5, "min_lr": 0.01},
        {"sched": "poly", "lr_cycle_limit": 2, "lr_k_decay": 0.5, "cooldown_epochs": 2},
        {"sched": "cosine", "lr_k_decay": 2.0, "warmup_epochs": 2, "warmup_prefix": True},
        {"sched": "cosine", "lr_noise": [0.2, 0.8], "lr_noise_pct": 0.5, "lr_noise_std": 0.3},
        {"sched": "step", "decay_epochs": 3, "lr_noise": [0.5]},
    ],
    ids=str,
)
def test_schedule_has_timms_rates(values: dict[str, Any], on_updates: bool) -> None:
    train = TrainConfig(epochs=8, lr=0.4, seed=5, sched_on_updates=on_updates, **values)
    own = torch.optim.SGD([torch.zeros(())], lr=0.4)
    scheduler, epochs = build_scheduler(train, own, updates_per_epoch=3)
    theirs = torch.optim.SGD([torch.zeros(())], lr=0.4)
    arguments = scheduler_kwargs(Namespace(**train.model_dump()), decreasing_metric=False)
    timms, timms_epochs = create_scheduler_v2(theirs, **arguments, updates_per_epoch=3)
    assert epochs == timms_epochs and epochs >= 8
    found = rates(scheduler, own, epochs, 3)
    assert found == rates(timms, theirs, epochs, 3)
    plain = TrainConfig(epochs=8, lr=0.4, sched=train.sched, sched_on_updates=on_updates)
    optimizer = torch.optim.SGD([torch.zeros(())], lr=0.4)
    assert found != rates(build_scheduler(plain, optimizer, 3)[0], optimizer, epochs, 3)


def test_plateau_has_timms_rates() -> None:
    values = {"warmup_epochs": 2, "patience_epochs": 1, "decay_rate": 0.5, "min_lr": 0.03}
    train = TrainConfig(sched="plateau", lr=0.4, warmup_lr=0.1, **values)
    found, expected = [], []
    groups = [{"params": [torch.zeros(())], "lr_scale": scale} for scale in (1.0, 0.25)]
    own = torch.optim.SGD([dict(group) for group in groups], lr=0.4)
    theirs = torch.optim.SGD([dict(group) for group in groups], lr=0.4)
    plateau, epochs = build_scheduler(train, own, updates_per_epoch=3)
    with pytest.warns(FutureWarning, match="deprecated"):
        arguments = {**train.model_dump(), "eval_metric": "top1"}
        timms, _ = create_scheduler_v2(theirs, **scheduler_kwargs(Namespace(**arguments)))
    assert epochs == train.epochs
    for epoch, metric in enumerate([1, 2, 3, 4, 4, 4, 5, 5, 5, 5, 4, 3, 9, 9, 9, 9], start=1):
        found.append([group["lr"] for group in own.param_groups])
        expected.append([group["lr"] for group in theirs.param_groups])
        plateau.step(epoch)
        plateau.step_update(epoch)
        plateau.step(epoch, metric)
        timms.step(epoch, metric)
    assert found == expected
    assert len({first for first, _ in found}) == 6  # it was warmed up, and decayed three times


def test_plateau_without_validation_images_is_refused() -> None:
    said = "train.sched: needs validation images: data.holdout or data.val_split. Found plateau."
    assert problems_of(recipe(train=PLATEAU)) == (said,)
    values = recipe(data={"holdout": "2"}, train=PLATEAU)
    assert problems_of(values) == ()
    values["train"]["sched_on_updates"] = True
    (line,) = problems_of(values)
    assert line.startswith("train.sched_on_updates: should be left out")
    searched = {"search": {"nodes": 1, "target_model": "resnet8_cifar"}}
    with pytest.raises(RecipeError, match=r"^train\.sched: should not be plateau: a search's last"):
        check_section(SearchRecipe, {**searched, "data": values["data"], "train": PLATEAU})


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({}, 0.1 * 64 / 256),
        ({"batch_size": 1024}, 0.1 * 1024 / 256),
        ({"lr_base": 0.4, "lr_base_size": 128}, 0.4 * 64 / 128),
        ({"opt": "adamw"}, 0.1 * (64 / 256) ** 0.5),
        ({"opt": "adafactor"}, 0.1 * (64 / 256) ** 0.5),
        ({"opt": "lamb"}, 0.1 * (64 / 256) ** 0.5),
        ({"lr_base_scale": "sqrt"}, 0.1 * (64 / 256) ** 0.5),
        ({"opt": "lamb", "lr_base_scale": "linear"}, 0.1 * 64 / 256),
    ],
    ids=str,
)
def test_rate_of_a_null_lr_grows_with_the_batch(values: dict[str, Any], rate: float) -> None:
    assert TrainConfig(lr=None, **values).learning_rate == pytest.approx(rate)


def test_given_rate_does_not_grow_with_the_batch() -> None:
    assert TrainConfig(lr=0.3, batch_size=1024).learning_rate == 0.3


def test_setting_of_an_average_that_is_on_in_another_word_has_an_effect() -> None:
    assert problems_of(recipe(train={"model_ema": "on", "model_ema_decay": "0.9"})) == ()
    assert problems_of(recipe(train={"model_ema": "off", "model_ema_warmup": "no"})) == ()


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"lr_base": 0.2}, "lr_base", "train.lr is null"),
        ({"lr_base_scale": "sqrt"}, "lr_base_scale", "train.lr is null"),
        ({"layer_decay_min_scale": 0.1}, "layer_decay_min_scale", "train.layer_decay is given"),
        ({"sched": "step", "lr_cycle_limit": 2}, "lr_cycle_limit", "cosine, tanh or poly"),
        ({"sched": "tanh", "lr_k_decay": 2}, "lr_k_decay", "cosine or poly"),
        ({"lr_cycle_mul": 2}, "lr_cycle_mul", "train.lr_cycle_limit is above 1"),
        ({"lr_noise_pct": 0.5}, "lr_noise_pct", "train.lr_noise is given"),
        ({"sched": "cosine", "decay_epochs": 30}, "decay_epochs", "step, wsd or rsqrt"),
        (
            {"sched": "step", "decay_milestones": [9]},
            "decay_milestones",
            "train.sched is multistep",
        ),
        ({"sched": "cosine", "decay_rate": 0.2}, "decay_rate", "step, multistep, poly or plateau"),
        (
            {"sched": "constant", "min_lr": 1e-4},
            "min_lr",
            "cosine, tanh, poly, wsd, rsqrt or plateau",
        ),
        ({"sched": "step", "cooldown_epochs": 3}, "cooldown_epochs", "cosine, tanh or poly"),
        ({"warmup_lr": 0.01}, "warmup_lr", "train.warmup_epochs is above 0"),
        ({"warmup_epochs": "0", "warmup_prefix": True}, "warmup_prefix", "warmup_epochs is above"),
        ({"clip_mode": "agc"}, "clip_mode", "train.clip_grad is given"),
        ({"model_ema_decay": 0.9}, "model_ema_decay", "train.model_ema is true"),
        ({"model_ema": "false", "model_ema_warmup": "on"}, "model_ema_warmup", "model_ema is true"),
    ],
    ids=str,
)
def test_setting_without_an_effect_is_refused(
    values: dict[str, Any], field: str, said: str
) -> None:
    (line,) = problems_of(recipe(train=values))
    assert line.startswith(f"train.{field}: has no effect unless train.") and said in line
    default = TrainConfig.model_fields[field].default
    assert line.endswith(f"Leave it out, or give its default, {json.dumps(default)}.")
    typed = default if isinstance(default, list) or default is None else str(default)
    assert problems_of(recipe(train={**values, field: typed})) == ()


@pytest.mark.parametrize(
    ("values", "epochs", "warmup"),
    [
        ({"epochs": 4, "warmup_epochs": 500}, "4", "500"),
        ({"epochs": "4", "warmup_epochs": "5", "warmup_prefix": "no"}, "4", "5"),
        ({"warmup_epochs": 3}, "2", "3"),
    ],
)
def test_warm_up_that_never_ends_is_refused(
    values: dict[str, Any], epochs: str, warmup: str
) -> None:
    assert problems_of(recipe(train=values)) == (
        f"train.warmup_epochs: should be at most train.epochs, {epochs}, unless "
        f"train.warmup_prefix adds the two. Found {warmup}.",
    )
    assert problems_of(recipe(train={**values, "warmup_prefix": "yes"})) == ()
    assert problems_of(recipe(train={**values, "warmup_epochs": epochs})) == ()


def test_list_is_no_schedule() -> None:
    assert [line.split(":")[0] for line in problems_of(changed("train.sched", []))] == [
        "train.sched"
    ]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train_crop_mode": "rkrc", "scale": [0.6, 1.0]},
        {"train_crop_mode": "rkrr", "ratio": [0.9, 1.1]},
        {"color_jitter_prob": 0.8, "grayscale_prob": 0.2, "gaussian_blur_prob": 0.1},
        {"aa": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic", "vflip": 0.25},
        {"no_aug": True},
    ],
    ids=str,
)
def test_transform_of_the_training_is_the_one_of_timms_loader(values: dict[str, Any]) -> None:
    data = DataConfig(pipeline="timm", **values)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    preparation = Preparation((3, 32, 32), "bicubic", 0.9, "center")
    found = build_transform(data, preparation, mean, std, train=True)
    names = ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter")
    names += ("color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "interpolation")
    arguments = {name: getattr(data, name) for name in names}
    dataset: Any = torch.utils.data.TensorDataset(torch.zeros(4))
    create_loader(
        dataset,
        (3, 32, 32),
        batch_size=2,
        is_training=True,
        auto_augment=data.aa,
        mean=mean,
        std=std,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        **arguments,
    )
    assert repr(found) == repr(dataset.transform)


def test_blur_of_tiny_images_is_refused() -> None:
    data = DataConfig(pipeline="timm", gaussian_blur_prob=0.1)
    preparation = Preparation((3, 8, 8), "bicubic", 0.9, "center")
    with pytest.raises(ValueError, match=r"^data\.gaussian_blur_prob: .* Found 8x8\.$"):
        build_transform(data, preparation, (0.5,) * 3, (0.5,) * 3, train=True)


def test_head_starts_as_timms_script_makes_it() -> None:
    model, expected = vit(), vit()
    prepare_to_learn(Node("a", model), TrainConfig(head_init_scale=0.25, head_init_bias=-4.6))
    with torch.no_grad():
        expected.get_classifier().weight.mul_(0.25)
        expected.get_classifier().bias.mul_(0.25)
    nn.init.constant_(expected.get_classifier().bias, -4.6)
    theirs = expected.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["levit_128s", "caformer_s18", "crossvit_tiny_240"])
def test_head_of_several_layers_starts_anew_in_its_last(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepare_to_learn(Node("a", model), TrainConfig(head_init_scale=0.25, head_init_bias=-4.6))
    changed = {k: v for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {len(value) for value in changed.values()} == {4}
    for key, value in changed.items():
        bias = torch.full_like(value, -4.6)
        assert torch.equal(value, bias if key.endswith("bias") else before[key] * 0.25)


def test_word_that_is_no_device_is_refused() -> None:
    for name in ("gpu", "cuda:x"):
        (line,) = problems_of(recipe(train={"device": name}))
        assert (
            line == f"train.device: should be a device, such as cpu, cuda or cuda:1. Found {name}."
        )


@pytest.mark.usefixtures("workplace")
def test_head_of_a_frozen_node_stays_as_it_is() -> None:
    teacher = {"checkpoint_path": save_weights("w.safetensors")}
    values = recipe(TWO, teacher)
    plain = build_nodes(check_recipe(values), 10)
    values["train"]["head_init_scale"] = 0.0
    student, helper = build_nodes(check_recipe(values), 10)
    assert not student.model.fc.weight.any()
    assert torch.equal(student.model.stem.conv.weight, plain[0].model.stem.conv.weight)
    assert torch.equal(helper.model.fc.weight, plain[1].model.fc.weight)


def test_model_without_what_is_asked_for_is_refused() -> None:
    node = Node("a", timm.create_model("inception_v3", num_classes=4))
    with pytest.raises(
        RecipeError, match=r"^train\.grad_checkpointing: .*`a` does not support it\.$"
    ):
        prepare_to_learn(node, TrainConfig(grad_checkpointing=True))
    node = Node("a", vit(global_pool="avg"))
    node.model.head.bias = None
    with pytest.raises(RecipeError, match=r"^train\.head_init_bias: .*`a` has no bias\.$"):
        prepare_to_learn(node, TrainConfig(head_init_bias=0.0))
    with pytest.raises(RecipeError, match=r"^train\.head_init_scale: .*`b` has no classifier"):
        prepare_to_learn(Node("b", nn.Flatten()), TrainConfig(head_init_scale=1.0))


def kept_bytes(model: nn.Module) -> tuple[int, list[torch.Tensor]]:
    """What a forward pass in training keeps for the backward pass, and the gradients."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    model.train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(images).square().sum()
    loss.backward()
    return kept, [parameter.grad for parameter in model.parameters()]


def test_checkpointing_keeps_less_and_gives_the_same_gradients() -> None:
    plain, checkpointed = vit(), vit()
    prepare_to_learn(Node("a", checkpointed), TrainConfig(grad_checkpointing=True))
    most, expected = kept_bytes(plain)
    least, found = kept_bytes(checkpointed)
    assert least < most / 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_checkpointing_beside_taps_is_refused() -> None:
    train = TrainConfig(grad_checkpointing=True)
    for taps in ((), ("blocks.1",)):
        node = Node("a", vit(), taps)
        graph = KnowledgeTransferGraph([node], [Edge("label", "a")], "a")
        if not taps:
            check_grad_checkpointing(train, graph)
    with pytest.raises(RecipeError, match=r"^train\.grad_checkpointing: .*Found taps on a\.$"):
        check_grad_checkpointing(train, graph)
