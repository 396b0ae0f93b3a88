"""Streams: what is counted, who reads what, and that an epoch can be gone on with exactly."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from tests.tiny_data import rows, save_images
from timm_ktg.data import Splits, Stream, StreamLoader, load_splits, load_streams
from timm_ktg.errors import DataError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("workplace"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than cores
]


def shards(folder: Path, sizes: list[int], group: int = 10, name: str = "train") -> str:
    """Write parquet files of images whose label is their row number."""
    total, start = sum(sizes), 0
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=total)})
    folder.mkdir(exist_ok=True)
    datasets.disable_progress_bars()
    for number, size in enumerate(sizes):
        labels = list(range(start, start + size))
        images = [Image.new("RGB", (4, 4), (label % 256, label // 256, 0)) for label in labels]
        part = Dataset.from_dict({"image": images, "label": labels}, features)
        part.to_parquet(folder / f"{name}-{number:05d}.parquet", batch_size=group)
        start += size
    return str(folder)


def splits(folder: str, **options: Any) -> Splits:
    return load_streams(folder, **({"test_split": None} | options))


def tensor(image: Image.Image) -> Tensor:
    red, green, _ = image.getpixel((0, 0))
    return torch.tensor([red + 256 * green, torch.randint(2**40, ()).item()])


def loader(folder: str, train: bool = True, **options: Any) -> StreamLoader:
    opened = splits(folder, train_num_samples=options.pop("images", None))
    settings: dict[str, Any] = {"batch_size": 8, "device": "cpu", "workers": 0, "buffer": 16}
    stream, classes = opened.train, opened.num_classes
    assert isinstance(stream, Stream)
    settings |= {"num_classes": classes} | options
    return StreamLoader(stream, "image", "label", tensor, train=train, **settings)


def epochs(loader: StreamLoader, *numbers: int) -> list[list[Tensor]]:
    """The images' numbers, beside draws of the augmentation, batch by batch."""
    found = []
    for number in numbers:
        loader.set_epoch(number)
        batches = list(loader)
        for images, labels in batches:
            assert torch.equal(images[:, 0], labels)
        found.append([images for images, _ in batches])
    return found


def same(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    flat = [sum(each, []) for each in (left, right)]
    return len(flat[0]) == len(flat[1]) and all(map(torch.equal, *flat))


def seen(batches: list[Tensor]) -> list[int]:
    return torch.cat([torch.zeros(0, 2), *batches])[:, 0].int().tolist()


@pytest.mark.parametrize("sizes", [[40], [13, 7, 20], [5] * 8])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_reads_every_image_once(
    tmp_path: Path, sizes: list[int], world_size: int, workers: int
) -> None:
    folder = shards(tmp_path / "data", sizes)
    found: list[int] = []
    for rank in range(world_size):
        own = loader(folder, train=False, workers=workers, rank=rank, world_size=world_size)
        first, second = epochs(own, 0, 1)
        assert seen(first) == seen(second)
        found += seen(first)
    assert sorted(found) == list(range(40))


@pytest.mark.parametrize("sizes", [[42], [10, 12, 20], [7] * 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_have_equally_many_images_and_other_ones(
    tmp_path: Path, sizes: list[int], workers: int
) -> None:
    folder = shards(tmp_path / "data", sizes)
    ranks = [
        epochs(loader(folder, workers=workers, rank=rank, world_size=2), 0)[0] for rank in (0, 1)
    ]
    assert [len(batch) for batch in ranks[0]] == [4, 4, 4, 4, 4, 1]
    assert [len(batch) for batch in ranks[1]] == [4, 4, 4, 4, 4, 1]
    once = seen(ranks[0]) + seen(ranks[1])
    assert max(Counter(once).values()) <= 2 and len(set(once)) > 30


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_one_process_reads_all_images_in_every_epoch_of_one_pass(
    tmp_path: Path, workers: int
) -> None:
    found = epochs(loader(shards(tmp_path / "data", [48], group=8), workers=workers), 0, 1)
    if workers != 3:  # three do not share six batches of eight row groups evenly
        assert [sorted(seen(epoch)) for epoch in found] == [list(range(48))] * 2
    assert seen(found[0]) != seen(found[1]) and seen(found[0]) != sorted(seen(found[0]))


def test_epoch_shorter_than_the_data_goes_on_in_the_next(tmp_path: Path) -> None:
    found = epochs(loader(shards(tmp_path / "data", [40]), images=16), *range(5))
    assert [len(seen(epoch)) for epoch in found] == [16] * 5
    assert Counter(sum(map(seen, found), [])) == dict.fromkeys(range(40), 2)


def test_epoch_longer_than_the_data_begins_another_pass(tmp_path: Path) -> None:
    (found,) = epochs(loader(shards(tmp_path / "data", [10]), images=30), 0)
    assert Counter(seen(found)) == dict.fromkeys(range(10), 3)


def test_block_mixes_rows_of_several_shards(tmp_path: Path) -> None:
    (found,) = epochs(loader(shards(tmp_path / "data", [20, 20, 20, 20])), 0)
    origins = {number // 20 for number in seen(found)[:16]}
    assert origins == {0, 1, 2, 3}


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("sizes", [[60], [11, 9, 17, 23]])
def test_stream_goes_on_from_its_state_exactly(
    tmp_path: Path, sizes: list[int], workers: int
) -> None:
    folder = shards(tmp_path / "data", sizes)
    options = {"workers": workers, "images": 37, "rank": 1, "world_size": 2}
    whole, state = loader(folder, **options), None
    expected = epochs(whole, 0, 1, 2)
    before = loader(folder, **options)
    assert same(epochs(before, 0, 1), expected[:2])
    state = json.loads(json.dumps(before.state_dict()))
    after = loader(folder, **options)
    after.load_state_dict(state)
    assert same(epochs(after, 2), expected[2:])
    assert same(epochs(after, 2), expected[2:])  # an epoch can be repeated


def test_iteration_that_was_broken_off_is_repeated_exactly(tmp_path: Path) -> None:
    own = loader(shards(tmp_path / "data", [60]), workers=2, images=24)
    expected = epochs(own, 0, 1)
    own.set_epoch(1)
    next(iter(own))
    assert same(epochs(own, 1), expected[1:])


def test_state_of_other_workers_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", [60])
    two = loader(folder, workers=2)
    epochs(two, 0)
    with pytest.raises(ValueError, match="data.workers should be 2, .* Found 3"):
        loader(folder, workers=3).load_state_dict(two.state_dict())


def test_seed_changes_order_and_augmentation(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", [60])
    first, again, other = (epochs(loader(folder, seed=seed), 0) for seed in (1, 1, 2))
    assert same(first, again) and seen(first[0]) != seen(other[0])
    assert not torch.equal(first[0][0][:, 1], other[0][0][:, 1])


def test_augmentation_leaves_global_generators_alone(tmp_path: Path) -> None:
    own = loader(shards(tmp_path / "data", [20]))
    before = torch.get_rng_state()
    epochs(own, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_size_and_classes_are_counted_from_labels_alone(tmp_path: Path) -> None:
    plain = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}] * 9, "label": [0, 1, 2] * 3},
        Features({"image": ImageFeature(), "label": Value("int32")}),
    )
    (tmp_path / "data").mkdir()
    plain.to_parquet(tmp_path / "data" / "train.parquet")
    found = splits(str(tmp_path / "data"))
    assert (len(found.train), found.num_classes, found.class_names) == (9, 3, ("0", "1", "2"))
    stated = splits(str(tmp_path / "data"), train_num_samples=5, num_classes=4)
    assert (len(stated.train), stated.num_classes) == (5, 4)
    assert stated.fingerprint != found.fingerprint


def test_test_split_is_in_one_fingerprint_alone(tmp_path: Path) -> None:
    folder = shards(tmp_path / "data", [9])
    for split in ("validation", "test"):
        shards(tmp_path / "data", [9], name=split)
    with_test, without = (
        splits(folder, val_split="validation", test_split=name) for name in ("test", None)
    )
    assert with_test.fingerprint != without.fingerprint
    assert with_test.without_test == without.without_test


def test_folder_of_images_and_saved_splits_stream_in_random_shards(tmp_path: Path) -> None:
    data = rows(30)
    save_images(tmp_path / "images", train=data)
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "saved")
    for name in ("images", "saved"):
        found = splits(str(tmp_path / name))
        assert isinstance(found.train, Stream) and len(found.train) == 30
        assert found.class_names == ("class 0", "class 1", "class 2")
        labels = [row["label"] for row in found.train.dataset]
        assert len(set(labels[:8])) == 3  # class after class lies in a folder
        assert sorted(labels) == sorted(
            load_splits(str(tmp_path / name), test_split=None).train["label"]
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_key": "imag"}, "data.input_key: `imag` is no column.* Did you mean `image`"),
        ({"train_split": "trian"}, "data.train_split: `trian` is no split.* Did you mean `train`"),
        ({"num_classes": 3}, "data.num_classes: should be left out, or be the 20 .* Found 3"),
    ],
)
def test_wrong_names_are_told_in_one_line(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        splits(shards(tmp_path / "data", [20]), **options)


def damaged(folder: Path) -> Iterator[Dataset]:
    good = {"bytes": (folder / "good.png").read_bytes(), "path": None}
    features = Features({"image": ImageFeature(), "label": Value("int32")})
    yield Dataset.from_dict(
        {"image": [good, {"bytes": b"x", "path": None}], "label": [0, 1]}, features
    )
    yield Dataset.from_dict({"image": [good, good], "label": [0, 7]}, features)
    yield Dataset.from_dict({"image": [good, good], "label": [0, None]}, features)


@pytest.mark.parametrize("workers", [0, 1])
def test_row_that_cannot_be_used_stops_the_run_in_one_line(tmp_path: Path, workers: int) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    said = ("row 1 of shard 0 of `image`", "0 .. 1. Found 7", "0 .. 1. Found None")
    for number, (data, expected) in enumerate(zip(damaged(tmp_path), said, strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        data.to_parquet(folder / "train.parquet")
        opened = splits(str(folder), train_num_samples=2, num_classes=2)
        assert isinstance(opened.train, Stream)
        options: dict[str, Any] = {"num_classes": 2, "batch_size": 2, "device": "cpu"}
        own = StreamLoader(
            opened.train, "image", "label", tensor, train=True, workers=workers, **options
        )
        with pytest.raises(DataError, match=expected) as error:
            list(own)
        assert "\n" not in str(error.value)


def test_shard_that_is_damaged_stops_the_run_in_one_line(tmp_path: Path) -> None:
    own = loader(shards(tmp_path / "data", [20, 20]))
    for path in (tmp_path / "data").glob("*1.parquet"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"data.dataset: shard \d: ") as error:
        list(own)
    assert "\n" not in str(error.value)


def test_more_readers_than_rows_are_refused(tmp_path: Path) -> None:
    own = loader(shards(tmp_path / "data", [3]), workers=5, images=8, batch_size=1)
    with pytest.raises(DataError, match="found no image. Use fewer workers"):
        list(own)


def test_tars_of_webdataset_are_streamed_and_gone_on_with_exactly(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "data" / f"train-{shard:04d}.tar", "w") as tar:
            for label in range(shard * 10, shard * 10 + 10):
                image = io.BytesIO()
                Image.new("RGB", (4, 4), (label, 0, 0)).save(image, "PNG")
                for kind, content in (("png", image.getvalue()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{label:06d}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    keys = {"input_key": "png", "target_key": "cls"}
    found = splits(str(tmp_path / "data"), **keys)
    assert isinstance(found.train, Stream)
    assert (len(found.train), found.num_classes, found.train.dataset.num_shards) == (30, 30, 3)
    options: dict[str, Any] = {"num_classes": 30, "batch_size": 8, "device": "cpu", "buffer": 9}

    def opened() -> StreamLoader:
        return StreamLoader(found.train, *keys.values(), tensor, train=True, workers=2, **options)

    whole, before, after = opened(), opened(), opened()
    expected = epochs(whole, 0, 1)
    epochs(before, 0)
    after.load_state_dict(before.state_dict())
    assert same(epochs(after, 1), expected[1:])
    assert set(seen(sum(expected, []))) == set(range(30))
