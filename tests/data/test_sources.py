"""Where images come from: a folder gives its own files, whatever was read before."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from timm_ktg.data.sources import load_source
from timm_ktg.data.splits import load_splits
from timm_ktg.data.streams import load_streams

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
---
"""


@pytest.mark.parametrize("card", [CARD, None])
def test_folder_gives_its_own_files_not_those_of_a_namesake(
    workplace: Path, card: str | None
) -> None:
    def rows(parent: str, count: int) -> int:
        folder = Path(parent, "photos")
        folder.mkdir(parents=True, exist_ok=True)
        if card is not None:
            (folder / "README.md").write_text(card)
        pq.write_table(pa.table({"label": list(range(count))}), folder / "train.parquet")
        return len(load_source(str(folder))["train"])

    assert rows("first", 9) == 9
    assert rows("second", 12) == 12
    assert rows("first", 7) == 7  # other files in the same folder


def write_images(folder: Path, classes: Iterable[str], count: int = 3) -> None:
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (4, 4), (number, 0, 0))
            image.save(folder / label / f"{number}.png")


def places(dataset: Path, split: str) -> Counter[str]:
    """Return how many images of a split are in which folder."""
    from datasets import Image as ImageFeature

    images = load_source(str(dataset))[split].cast_column("image", ImageFeature(decode=False))
    return Counter(str(Path(each["path"]).parent.relative_to(dataset)) for each in images["image"])


@pytest.mark.parametrize(
    "classes",
    [("bus", "car", "train"), ("bullet_train", "field", "test_tube"), ("dev", "eval", "test")],
)
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "eval")])
def test_class_may_be_called_as_a_split_is(
    workplace: Path, classes: tuple[str, ...], names: tuple[str, ...]
) -> None:
    folder = workplace / "photos"
    for name in names:
        write_images(folder / name, classes)
    for split, name in zip(("train", "validation", "test"), names, strict=True):
        assert places(folder, split) == dict.fromkeys((f"{name}/{each}" for each in classes), 3)
    splits = load_splits(str(folder), val_split="validation")
    assert splits.class_names == classes
    assert load_streams(str(folder), val_split="validation").class_names == classes


@pytest.mark.parametrize("classes", [("bus", "car", "train"), ("field", "test_tube", "tree")])
def test_class_of_a_folder_without_splits_may_be_called_so_too(
    workplace: Path, classes: tuple[str, ...]
) -> None:
    write_images(workplace / "photos", classes)
    assert places(workplace / "photos", "train") == dict.fromkeys(classes, 3)
    splits = load_splits(str(workplace / "photos"), test_split=None)
    assert splits.class_names == classes and len(splits.train) == 9


def test_card_without_files_leaves_the_folders_to_say_it(workplace: Path) -> None:
    for name in ("train", "test"):
        write_images(workplace / "photos" / name, ("bus", "train"))
    (workplace / "photos" / "README.md").write_text("---\nlicense: mit\n---\nPhotos.\n")
    assert places(workplace / "photos", "test") == {"test/bus": 3, "test/train": 3}


@pytest.mark.parametrize("is_flat", [True, False])
def test_link_to_a_folder_of_a_class_is_refused(workplace: Path, is_flat: bool) -> None:
    folder = workplace / "photos"
    write_images(workplace / "elsewhere", ["cat"])
    write_images(folder if is_flat else folder / "train", ["dog"])
    link = folder / "cat" if is_flat else folder / "train" / "cat"
    link.symlink_to(workplace / "elsewhere" / "cat")
    where = link.relative_to(folder)
    with pytest.raises(ValueError, match=f"^data.dataset: `{where}` should be a folder. Found a l"):
        load_splits(str(folder), test_split=None)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("name", ["photos[1]", "ph?tos", "pho*s"])
def test_folder_named_like_a_pattern_gives_its_own_images(
    workplace: Path, name: str, is_flat: bool
) -> None:
    for folder, classes in (("photos1", ("bear", "fox")), ("photos", ("fox", "wolf"))):
        write_images(workplace / folder / ("" if is_flat else "train"), classes)
    write_images(workplace / name / ("" if is_flat else "train"), ("cat", "dog"))
    for load in (load_splits, load_streams):
        assert load(str(workplace / name), test_split=None).class_names == ("cat", "dog")


@pytest.mark.parametrize("card", [CARD, None])
def test_parquet_in_a_folder_named_like_a_pattern_is_refused(
    workplace: Path, card: str | None
) -> None:
    folder = workplace / "photos[1]"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    pq.write_table(pa.table({"label": [0, 1]}), folder / "train.parquet")
    with pytest.raises(ValueError, match=r"\[1\]` should not have \*, \? or \[ in its name"):
        load_source(str(folder))


def test_path_that_datasets_would_cut_is_refused(workplace: Path) -> None:
    write_images(workplace / "a::b" / "train", ("cat", "dog"))
    with pytest.raises(ValueError, match="`.*a::b` should have no `::` in its path"):
        load_source(str(workplace / "a::b"))


@pytest.mark.parametrize("where", ["__background__", "train/__background__", "train/dog/__more"])
def test_folder_of_images_that_datasets_leaves_out_is_refused(workplace: Path, where: str) -> None:
    folder = workplace / "photos"
    write_images(folder / "train" if "train" in where else folder, ("cat", "dog"))
    write_images(folder, (where,))
    with pytest.raises(ValueError, match=f"^data.dataset: `{where}` should not begin with `__`"):
        load_source(str(folder))


def test_hidden_files_and_empty_folders_are_left_out(workplace: Path) -> None:
    folder = workplace / "photos" / "train"
    write_images(folder, ("cat", "dog", ".thumbnails"))
    (folder / "__pycache__").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._0.png").touch()
    assert places(workplace / "photos", "train") == {"train/cat": 3, "train/dog": 3}


def test_link_to_a_folder_inside_a_class_is_refused(workplace: Path) -> None:
    write_images(workplace / "photos" / "train", ("cat", "dog"))
    (workplace / "photos" / "train" / "cat" / "more").symlink_to(workplace)
    with pytest.raises(ValueError, match="^data.dataset: `train/cat/more` should be a folder."):
        load_source(str(workplace / "photos"))


def test_reason_why_a_folder_cannot_be_read_is_said(workplace: Path) -> None:
    write_images(workplace / "photos" / "train", ("cat", "dog"))
    odd = os.fsencode(workplace / "photos" / "train" / "cat") + b"/caf\xe9.png"
    shutil.copy(workplace / "photos" / "train" / "cat" / "0.png", odd)
    with pytest.raises(ValueError, match=r"the name '.*caf\\udce9.png' is not UTF-8"):
        load_source(str(workplace / "photos"))


def test_folder_of_a_split_is_not_always_called_as_its_split(workplace: Path) -> None:
    for name in ("train", "val"):
        write_images(workplace / "photos" / name, ("bus", "car"))
    with pytest.raises(ValueError, match="`test` is no split.*If there is no test"):
        load_splits(str(workplace / "photos"))
    with pytest.raises(ValueError, match="`val` is no split.* Did you mean `validation`"):
        load_splits(str(workplace / "photos"), val_split="val", test_split=None)


def test_images_outside_a_folder_of_a_class_have_no_label(workplace: Path) -> None:
    write_images(workplace / "photos" / "train", ("bus", "car"))
    Image.new("RGB", (4, 4)).save(workplace / "photos" / "train" / "all.png")
    with pytest.raises(ValueError, match="`label` is no column.*in a folder of its class, all at"):
        load_splits(str(workplace / "photos"), test_split=None)


def test_class_without_an_image_to_train_on_is_said(
    workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(workplace / "photos" / "train", ("cat", "dog"))
    write_images(workplace / "photos" / "test", ("cat", "Dog"))
    load_splits(str(workplace / "photos"))
    assert caplog.messages == ["data.train_split: no training image has the class `Dog`."]
