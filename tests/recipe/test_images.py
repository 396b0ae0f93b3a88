"""From the section `data` to loaders: what a recipe says reaches timm's transforms."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

import timm_ktg  # noqa: F401 registers the models
from tests.recipe_cases import recipe
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.images import Images, ProcessInfo, build_images
from timm_ktg.recipe.recipe import check_recipe
from timm_ktg.recipe.splits import build_splits

pytestmark = pytest.mark.usefixtures("workplace")

STILL = {"scale": [1.0, 1.0], "ratio": [1.2, 1.2], "color_jitter": 0.0}


def images(**data: Any) -> Images:
    settings = {"pipeline": "timm", "workers": 0, "img_size": 8, "pad": 4} | data
    mine = check_recipe(recipe(data=settings))
    model = timm.create_model("resnet8_cifar", num_classes=10)
    process = ProcessInfo(torch.device("cpu"))
    return build_images(mine, build_splits(mine.data), model, process)


def train_images(**data: Any) -> Tensor:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return torch.cat([batch for batch, _ in images(**data).train])


def evaluated_images(**data: Any) -> Tensor:
    test = images(**data).test
    assert test is not None
    return torch.cat([batch for batch, _ in test()])


def test_flips_reach_the_transform() -> None:
    plain = train_images(hflip=0.0, **STILL)
    assert torch.equal(plain, train_images(hflip=1.0, **STILL).flip(-1))
    assert torch.equal(plain, train_images(hflip=0.0, vflip=1.0, **STILL).flip(-2))


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": [0.2, 0.3]},
        {"ratio": [2.0, 2.0]},
        {"color_jitter": 0.0},
        {"aa": "rand-m9-mstd0.5"},
        {"reprob": 1.0},
        {"reprob": 1.0, "remode": "const"},
        {"reprob": 1.0, "recount": 3},
        {"interpolation": "nearest"},
        {"no_aug": True},
        {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
        {"img_size": 6},
    ],
    ids=str,
)
def test_argument_changes_training_images(changed: dict[str, Any]) -> None:
    before = {"reprob": 1.0} if "reprob" in changed and len(changed) > 1 else {}
    plain = train_images(**before)
    assert torch.equal(plain, train_images(**before))
    found = train_images(**changed)
    assert found.shape != plain.shape or not torch.equal(found, plain)


def test_only_crop_pct_changes_the_images_of_evaluation() -> None:
    plain = evaluated_images(crop_pct=1.0)
    augmented = {"aa": "rand-m9", "reprob": 1.0, "interpolation": "random", "vflip": 1.0}
    assert torch.equal(plain, evaluated_images(crop_pct=1.0, **augmented))
    assert not torch.equal(plain, evaluated_images(crop_pct=0.5))


def test_what_timm_does_not_know_is_refused() -> None:
    for changed, message in (
        ({"aa": "foo"}, r"data\.aa: `foo`: Unknown AA policy foo"),
        ({"interpolation": "bicubik"}, r"data\.interpolation: .* Did you mean `bicubic`\?"),
        ({"remode": "pixle"}, r"data\.remode: .* `const`, `rand` or `pixel`. Found 'pixle'"),
    ):
        with pytest.raises(RecipeError, match=message):
            images(**changed)


@pytest.mark.parametrize("reprob", [0.0, 1.0])
@pytest.mark.parametrize("streaming", [False, True])
def test_prefetcher_makes_the_same_batches(
    reprob: float, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"streaming": streaming, "reprob": reprob}
    made = {}
    for plainly in (False, True):
        where = "timm_ktg.recipe.delivery.workers_normalize"
        monkeypatch.setattr(where, lambda *_, plainly=plainly: plainly)
        made[plainly] = evaluated_images(**data), train_images(**data)
    (evaluated, plain), (expected, found) = made[True], made[False]
    torch.testing.assert_close(evaluated, expected)
    unlike = ((found - plain).abs() > 1e-5).flatten(1).any(1)
    assert unlike.all() if reprob else not unlike.any()


def test_size_is_that_of_which_the_target_was_built() -> None:
    target = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, dynamic_img_size=True, num_classes=10, depth=1
    )
    mine = check_recipe(recipe(data={"pipeline": "timm", "workers": 0, "pad": 4, "crop_pct": 1.0}))
    process = ProcessInfo(torch.device("cpu"))
    found = build_images(mine, build_splits(mine.data), target, process)
    assert found.size == (32, 32) and next(iter(found.train))[0].shape[-2:] == (32, 32)


def test_channel_that_is_the_same_in_all_images_is_named(workplace: Path) -> None:
    for label in ("cat", "dog"):
        (workplace / "photos" / "train" / label).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (8, 8), (number, number, 7))
            image.save(workplace / "photos" / "train" / label / f"{number}.png")
    data = {"dataset": str(workplace / "photos"), "test_split": None, "holdout": 0}
    mine = check_recipe(recipe(data=data))
    model = timm.create_model("resnet8_cifar", num_classes=2)
    with pytest.raises(RecipeError, match="data.std: should be given, with data.mean: channel 2 i"):
        build_images(mine, build_splits(mine.data), model, ProcessInfo(torch.device("cpu")))


def test_data_with_one_class_are_refused(workplace: Path) -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat"])})
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 4
    DatasetDict(
        train=Dataset.from_dict({"image": pixels, "label": [0] * 4}, features)
    ).save_to_disk(str(workplace / "saved"))
    data = DataConfig(dataset=str(workplace / "saved"), test_split=None)
    with pytest.raises(RecipeError, match="`label` should have two classes or more. Found only `c"):
        build_splits(data)
