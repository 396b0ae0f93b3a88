"""Sources and splits. Pixels: test_images.py; batches: test_loaders.py."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from timm_ktg.data import check_labels, decode, load_splits
from timm_ktg.errors import did_you_mean

NAMES = ["cat", "dog", "owl"]
CLASSES = ClassLabel(names=NAMES)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what Datasets converts out of the user's cache, and Datasets off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def split(size: int, target: Any = CLASSES, labels: list[Any] | None = None) -> Dataset:
    labels = [row % 3 for row in range(size)] if labels is None else labels
    return Dataset.from_dict(
        {"image": [picture(row) for row in range(size)], "label": labels, "name": ["x"] * size},
        Features({"image": ImageFeature(), "label": target, "name": Value("string")}),
    )


def save(folder: Path, **splits: Dataset) -> str:
    DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def save_parquet(folder: Path, **splits: Dataset) -> str:
    folder.mkdir()
    for name, rows in splits.items():
        rows.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    return str(folder)


def save_images(folder: Path, **splits: Dataset) -> str:
    for name, rows in splits.items():
        for number, row in enumerate(rows):
            path = folder / name / NAMES[row["label"]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return save(tmp_path / "pets", train=split(12), valid=split(6), test=split(3))


def test_digits_are_8x8_stratified_and_scaled_to_255() -> None:
    digits = load_splits("digits")
    assert digits.test is not None and digits.val is None
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    images, labels = decode(digits.train, digits.input_key, digits.target_key)
    assert images.shape == (1437, 3, 8, 8) and images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)
    tested = torch.tensor(digits.test["label"])
    share = tested.bincount() / (labels.bincount() + tested.bincount())
    assert share.sub(0.2).abs().max() < 0.005


@pytest.mark.parametrize("write", [save, save_parquet, save_images])
def test_folder_of_each_format_is_read_alike(
    tmp_path: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of Datasets' own builders has this name: the folder must take precedence.
    write(tmp_path / "parquet", train=split(6), test=split(3))
    monkeypatch.chdir(tmp_path)
    pets = load_splits("parquet")
    assert pets.class_names == tuple(NAMES) and pets.test is not None and len(pets.test) == 3
    images, labels = decode(pets.train, "image", "label")
    expected = {picture(row).tobytes(): row % 3 for row in range(6)}
    found = {
        image.permute(1, 2, 0).numpy().tobytes(): int(y)
        for image, y in zip(images, labels, strict=True)
    }
    assert found == expected


def test_folder_of_one_saved_split_is_read(tmp_path: Path) -> None:
    split(6).save_to_disk(str(tmp_path / "pets"))
    assert len(load_splits(str(tmp_path / "pets"), test_split=None).train) == 6


def test_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_parquet(tmp_path / "uoft-cs", train=split(6), test=split(3))
    (tmp_path / "uoft-cs").rename(tmp_path / "cifar100")
    (tmp_path / "uoft-cs").mkdir()
    (tmp_path / "cifar100").rename(tmp_path / "uoft-cs" / "cifar100")
    monkeypatch.chdir(tmp_path)
    assert load_splits("uoft-cs/cifar100").num_classes == 3


def test_hub_data_set_is_loaded_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load(path: str, name: str | None) -> Mapping[str, Dataset]:
        asked.append((path, name))
        return DatasetDict(train=split(6).rename_columns({"image": "img", "label": "fine_label"}))

    monkeypatch.setattr(datasets, "load_dataset", load)
    keys = {"input_key": "img", "target_key": "fine_label"}
    splits = load_splits("uoft-cs/cifar100", dataset_config="plain", test_split=None, **keys)
    assert asked == [("uoft-cs/cifar100", "plain")] and len(splits.train) == 6


def test_integer_labels_count_the_classes(tmp_path: Path) -> None:
    where = save(tmp_path / "pets", train=split(9, Value("int32")), valid=split(2, Value("int8")))
    pets = load_splits(where, val_split="valid", test_split=None)
    assert pets.class_names == ("0", "1", "2") and pets.num_classes == 3


def test_holdout_is_disjoint_complete_and_seeded() -> None:
    def rows(**arguments: int) -> tuple[list[bytes], list[bytes], str]:
        digits = load_splits("digits", **arguments)
        assert digits.val is not None
        encoded = [
            part.cast_column("image", ImageFeature(decode=False))
            for part in (digits.train, digits.val)
        ]
        train, val = ([row["image"]["bytes"] for row in part] for part in encoded)
        return train, val, digits.fingerprint

    whole = load_splits("digits").train.cast_column("image", ImageFeature(decode=False))
    train, val, fingerprint = rows(holdout=400)
    assert len(val) == 400 and len(train) == 1037
    assert sorted(train + val) == sorted(row["image"]["bytes"] for row in whole)
    assert rows(holdout=400) == (train, val, fingerprint)
    assert rows(holdout=400, split_seed=1)[1] != val


def test_images_per_class_are_the_same_with_and_without_a_holdout() -> None:
    def rows(**arguments: int) -> list[bytes]:
        train = load_splits("digits", images_per_class=5, **arguments).train
        assert sorted(train["label"]) == sorted(list(range(10)) * 5)
        train = train.cast_column("image", ImageFeature(decode=False))
        return [row["image"]["bytes"] for row in train]

    assert rows() == rows(holdout=400)
    assert rows() != rows(split_seed=1)
    with pytest.raises(ValueError, match=r"data\.images_per_class: every class should have 200 "):
        load_splits("digits", images_per_class=200)


def test_fingerprint_records_choice_order_and_sizes(tmp_path: Path) -> None:
    def of(name: str, **splits: Dataset) -> str:
        return save(tmp_path / name, **splits)

    base = of("a", train=split(12), test=split(3))
    turned = of("b", train=split(12).select(range(11, -1, -1)), test=split(3))
    more = of("c", train=split(12), test=split(4))
    prints = [
        load_splits(base).fingerprint,
        load_splits(base, holdout=4).fingerprint,
        load_splits(base, holdout=4, split_seed=1).fingerprint,
        load_splits(turned).fingerprint,
        load_splits(more).fingerprint,
    ]
    assert len(set(prints)) == 5
    assert load_splits(base, holdout=4).fingerprint == prints[1] and len(prints[0]) == 64


def test_test_split_is_not_read_before_the_test(tmp_path: Path) -> None:
    broken = split(3, Value("int64"), [-1, 7, None]).cast_column(
        "image", ImageFeature(decode=False)
    )
    broken = broken.map(lambda row: {"image": {"bytes": b"no image", "path": None}})
    broken = broken.cast_column("image", ImageFeature())
    where = save(tmp_path / "pets", train=split(6, Value("int64")), test=broken)
    pets = load_splits(where, holdout=2)
    assert pets.test is not None and len(decode(pets.train, "image", "label")[0]) == 4
    with pytest.raises(ValueError, match=r"data\.test_split: every image should have a label"):
        check_labels(pets.test, "label", pets.num_classes)
    with pytest.raises(ValueError, match=r"data\.input_key: row 0 of `image`: cannot identify"):
        decode(pets.test, "image", "label")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"train_split": "trian"},
        r"data\.train_split: `trian` is no split\. .* valid, test\. Did you mean `train`\?",
    ),
    ({"val_split": "val"}, r"data\.val_split: `val` is no split\. .* Did you mean `valid`\?"),
    ({"test_split": "xyz"}, r"data\.test_split: `xyz` is no split\. Splits: train, valid, test\.$"),
    (
        {"val_split": "test"},
        r"data\.test_split: should differ from data\.val_split, both are `test`",
    ),
    (
        {"val_split": "valid", "holdout": 2},
        r"data\.holdout: should be 0 beside data\.val_split, found 2 and `valid`",
    ),
    ({"holdout": 12}, r"data\.holdout: should be below the 12 training images .* found 12"),
    ({"holdout": -1}, r"data\.holdout: .* found -1"),
    ({"split_seed": -1}, r"data\.split_seed: should be 0 or more, found -1"),
    ({"input_key": "img"}, r"data\.input_key: `img` is no column\. Columns: image, label, name\."),
    (
        {"target_key": "lable"},
        r"data\.target_key: `lable` is no column\. .* Did you mean `label`\?",
    ),
    (
        {"input_key": "name"},
        r"data\.input_key: `name` should be a column of images, found string\. .* images: image\.",
    ),
    (
        {"target_key": "name"},
        r"data\.target_key: `name` should be a column of integer classes, found string\.",
    ),
    (
        {"dataset_config": "plain"},
        r"data\.dataset_config: .* has no configurations\. Found `plain`",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistake_names_its_field(folder: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_splits(folder, **arguments)
    assert "\n" not in str(caught.value)


BAD_SPLITS: list[tuple[dict[str, Callable[[], Dataset]], str]] = [
    (
        {"valid": lambda: split(3, ClassLabel(names=[*NAMES, "eel"]))},
        r"data\.val_split: `valid` should have the classes of `train`, found 4 classes .* has 3",
    ),
    (
        {"test": lambda: split(3, ClassLabel(names=NAMES[::-1]))},
        r"data\.test_split: `test` should have the classes of `train`, .* under other names",
    ),
    (
        {"train": lambda: split(3, Value("int64"), [0, 2, 3])},
        r"data\.target_key: .* should be 0 \.\. 3 without a gap, found 3 distinct ones without 1",
    ),
    (
        {"train": lambda: split(3, Value("int64"), [1, 2, 3])},
        r"0 \.\. 3 without a gap, .* without 0",
    ),
    (
        {"valid": lambda: split(3, Value("int64"), [0, 1, 3])},
        r"data\.val_split: .* should be 0 \.\. 2, .* Found 3",
    ),
    ({"train": lambda: split(3, CLASSES, [0, 1, -1])}, r"data\.train_split: .* Found -1"),
    ({"train": lambda: split(3, CLASSES, [0, 1, None])}, r"data\.train_split: .* lacks 1 of 3"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_SPLITS)
def test_unfit_split_is_refused(
    tmp_path: Path, bad: dict[str, Callable[[], Dataset]], message: str
) -> None:
    parts = {"train": split(6), "valid": split(3), "test": split(3)}
    where = save(tmp_path / "pets", **(parts | {name: make() for name, make in bad.items()}))
    with pytest.raises(ValueError, match=message):
        load_splits(where, val_split="valid")


def test_empty_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = save(tmp_path / "pets", train=split(6), test=split(0))
    with pytest.raises(ValueError, match=r"data\.dataset: .* cannot be read: a split is empty"):
        load_splits(where)
    hub = DatasetDict(train=split(6), test=split(0))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: hub)
    with pytest.raises(
        ValueError, match=r"data\.test_split: `test` should hold images, it is empty"
    ):
        load_splits("someone/something")
    assert len(load_splits("someone/something", test_split=None).train) == 6


def test_unknown_data_set_says_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "digit": r"`digit` is no folder and no hub id\. Should be .* Did you mean `digits`\?",
        "cifar100": r"is no folder and no hub id.* Did you mean `uoft-cs/cifar100`\?",
        "./pet": r"is no folder and no hub id.* Did you mean `\./pets`\?",
        "pets": r"`pets` holds no parquet, arrow or image files",
        "uoft-cs/cifar": r"\(Datasets is in offline mode\).* Did you mean `uoft-cs/cifar10`\?",
    }.items():
        with pytest.raises(ValueError, match=r"data\.dataset: .*" + message) as caught:
            load_splits(name)
        assert "\n" not in str(caught.value)


def test_hub_errors_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for error, message in (
        (datasets.exceptions.DatasetNotFoundError("gone"), "not on the hub or not yours to read"),
        (ConnectionError("no route"), r"the hub cannot be reached \(it does not answer\)"),
        (OSError("disk full\nand more"), r"cannot be read: disk full\. Should be"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["default"])
        with pytest.raises(ValueError, match=message):
            load_splits("someone/something")


def test_configuration_must_exist(tmp_path: Path) -> None:
    where = save_parquet(tmp_path / "pets", train=split(6), test=split(3))
    message = r"data\.dataset_config: `defualt` is no config.*: default\. Did you mean `default`\?"
    with pytest.raises(ValueError, match=message):
        load_splits(where, dataset_config="defualt")
    configs = "- config_name: a\n  data_files: train*\n- config_name: b\n  data_files: test*\n"
    (tmp_path / "pets" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    message = r"data\.dataset_config: should be chosen, none found\. Configurations: a, b\."
    with pytest.raises(ValueError, match=message):
        load_splits(where)
    assert len(load_splits(where, dataset_config="a", test_split=None).train) == 6


def test_nearest_name_is_suggested_or_nothing() -> None:
    assert did_you_mean("helpr", ["student", "helper"]) == " Did you mean `helper`?"
    assert did_you_mean("xyz", ["student", "helper"]) == ""
