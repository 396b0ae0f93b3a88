"""Classes and their order from a file."""

from pathlib import Path

import datasets
import pytest

from tests.tiny_data import rows, save, save_images
from timm_ktg.data import load_splits
from timm_ktg.data.class_map import read_class_map


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def class_map(folder: Path, text: str) -> str:
    (folder / "classes.txt").write_text(text)
    return str(folder / "classes.txt")


def test_order_of_the_file_is_that_of_the_labels(tmp_path: Path) -> None:
    save(tmp_path / "data", train=rows(9), test=rows(6))
    listed = class_map(tmp_path, "class 2\nclass 0\nclass 1\n")
    plain, found = (
        load_splits(str(tmp_path / "data")),
        load_splits(str(tmp_path / "data"), class_map=listed),
    )
    assert found.class_names == ("class 2", "class 0", "class 1")
    for before, after in ((plain.train, found.train), (plain.test, found.test)):
        assert before is not None and after is not None
        names = [plain.class_names[label] for label in before["label"]]
        assert [found.class_names[label] for label in after["label"]] == names
        pairs = zip(before["image"], after["image"], strict=True)
        assert all(one.tobytes() == other.tobytes() for one, other in pairs)
    assert plain.fingerprint != found.fingerprint


def test_file_may_begin_with_the_mark_that_windows_writes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\r\ndog\r\n", encoding="utf-8-sig")
    assert read_class_map(str(tmp_path / "classes.txt")) == ("cat", "dog")


def test_images_of_other_classes_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "data", train=rows(9), test=rows(6))
    listed = class_map(tmp_path, "class 2\nclass 1")
    found = load_splits(str(tmp_path / "data"), class_map=listed, holdout=2)
    assert found.test is not None and found.val is not None
    assert (found.num_classes, len(found.train), len(found.val), len(found.test)) == (2, 4, 2, 4)
    assert found.test["label"] == [1, 0, 1, 0]


def test_splits_without_a_class_agree(tmp_path: Path) -> None:
    test = rows(6).filter(lambda row: row["label"] != 0)
    save_images(tmp_path / "data", train=rows(9), test=test)
    listed = class_map(tmp_path, "class 0\nclass 1\nclass 2\n")
    found = load_splits(str(tmp_path / "data"), class_map=listed)
    assert found.num_classes == 3 and found.test is not None
    assert sorted(found.test["label"]) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\na\n", "Found `a` twice"),
        ("a\n\nb\n", "Found 3 lines"),
        ("a\n", "Found 1 lines"),
        ("", "Found 0 lines"),
    ],
)
def test_file_that_is_no_list_of_classes_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.class_map: .*{said}\.$"):
        read_class_map(class_map(tmp_path, text))


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.class_map: .*No such file"):
        read_class_map(str(tmp_path / "none.txt"))
    (tmp_path / "pickled.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match=r"^data\.class_map: .*it is no text\.$"):
        read_class_map(str(tmp_path / "pickled.pkl"))


def test_split_without_any_of_the_classes_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "data", train=rows(9), test=rows(6))
    with pytest.raises(ValueError, match=r"^data\.train_split: should have images of the classes"):
        load_splits(str(tmp_path / "data"), class_map=class_map(tmp_path, "cat\ndog\n"))
