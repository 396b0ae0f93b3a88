"""Decoding: one tensor from images of any kind."""

import ast
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

import timm_ktg.data
from timm_ktg.data import channel_stats, decode


def picture(seed: int, width: int = 6, height: int = 5) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def dataset(images: list[Image.Image | str]) -> Dataset:
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=2)})
    labels = [row % 2 for row in range(len(images))]
    return Dataset.from_dict({"image": images, "label": labels}, features)


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_decode_keeps_pixels_labels_and_order() -> None:
    images, labels = decode(dataset([picture(row) for row in range(300)]), "image", "label")
    assert images.shape == (300, 3, 5, 6) and images.dtype == torch.uint8
    assert torch.equal(images, torch.stack([pixels_of(picture(row)) for row in range(300)]))
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1] * 150


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_image_of_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    picture(0).convert("L" if mode == "LA" else "RGB").convert(mode).save(path, **options)
    with Image.open(path) as stored:
        assert stored.mode == mode
        wanted = pixels_of(stored.convert("RGBA" if mode == "P" else "RGB").convert("RGB"))
    images, _ = decode(dataset([str(path)]), "image", "label")
    assert torch.equal(images[0], wanted)


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_image_has_the_channels_that_are_asked_for(in_chans: int, mode: str) -> None:
    pictures = [picture(0), picture(1).convert("L"), picture(2).convert("RGBA")]
    images, _ = decode(dataset(pictures), "image", "label", in_chans=in_chans)
    assert images.shape == (3, in_chans, 5, 6)
    expected = [np.array(each.convert(mode)).reshape(5, 6, -1) for each in pictures]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_image_of_16_bits_is_refused() -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"data\.input_key: row 0 of `image`: should have 8 bits"):
        decode(dataset([deep]), "image", "label")


def test_missing_image_is_refused_by_its_row() -> None:
    with pytest.raises(ValueError, match=r"data\.input_key: row 1 of `image`: .* found none"):
        decode(dataset([picture(0), None]), "image", "label")


def test_sizes_that_differ_are_refused_by_their_row() -> None:
    message = r"found 6x5 and, at row 1, 9x7\. Set data\.img_size, or data\.pipeline timm"
    with pytest.raises(ValueError, match=message):
        decode(dataset([picture(0), picture(1, 9, 7)]), "image", "label")


def test_img_size_resizes_bicubically_and_leaves_what_fits() -> None:
    pictures = [picture(0, 9, 7), picture(1, 4, 4)]
    images, _ = decode(dataset(pictures), "image", "label", img_size=4)
    assert torch.equal(images[0], pixels_of(pictures[0].resize((4, 4), Image.Resampling.BICUBIC)))
    assert torch.equal(images[1], pixels_of(pictures[1]))


def test_channel_stats_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5000, 3, 4, 5), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 2
    mean, std = channel_stats(images)
    scaled = images.double() / 255
    assert np.allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-13, atol=0)
    assert np.allclose(std, scaled.std((0, 2, 3), correction=0), rtol=1e-13, atol=0)


def test_import_costs_neither_datasets_nor_sklearn() -> None:
    modules = list(Path(timm_ktg.data.__file__).parent.glob("*.py"))
    imports = [node for path in modules for node in ast.parse(path.read_text()).body]
    names = [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
    names += [
        alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names
    ]
    assert "torch" in names
    assert not {"datasets", "sklearn"} & {name.partition(".")[0] for name in names}


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """So many images, it is pretended, that workers decode them and they are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("timm_ktg.data.images._MANY", 100)
    monkeypatch.setattr("timm_ktg.data.images._CHUNK", 13 * 90)  # 13 images
    return dataset([picture(row) for row in range(100)])


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "timm_ktg" / "images").glob("*.npy"))


@pytest.mark.parametrize("cache", [False, True])
def test_workers_decode_the_same_pixels(many: Dataset, cache: bool) -> None:
    before = torch.get_rng_state()
    images, labels = decode(many, "image", "label", cache=cache)
    assert torch.equal(images, torch.stack([pixels_of(picture(row)) for row in range(100)]))
    assert labels.tolist() == [0, 1] * 50 and torch.equal(before, torch.get_rng_state())


def test_decoded_images_are_kept_and_not_decoded_again(
    many: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = decode(many, "image", "label", cache=True)
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr("timm_ktg.data.images.Chunks.fill", lambda *each: pytest.fail("decoded"))
    again, labels = decode(many, "image", "label", cache=True)
    assert torch.equal(images, again) and labels.tolist() == [0, 1] * 50
    again[:] = 0  # a copy of this process
    assert torch.equal(images, decode(many, "image", "label", cache=True)[0])


def test_other_images_columns_or_sizes_are_kept_beside(many: Dataset, tmp_path: Path) -> None:
    decode(many, "image", "label", cache=True)
    decode(many, "image", "label", img_size=4, cache=True)
    decode(many.rename_column("image", "other"), "other", "label", cache=True)
    decode(dataset([picture(row) for row in range(1, 101)]), "image", "label", cache=True)
    decode(many.select(range(99, -1, -1)), "image", "label", cache=True)
    assert len(kept(tmp_path)) == 5
    decode(dataset([picture(row) for row in range(100)]), "image", "label", cache=True)
    assert len(kept(tmp_path)) == 5  # the same content, read anew


def test_damaged_file_is_written_again(many: Dataset, tmp_path: Path) -> None:
    images, _ = decode(many, "image", "label", cache=True)
    (path,) = kept(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    again, _ = decode(many, "image", "label", cache=True)
    assert torch.equal(again, torch.stack([pixels_of(picture(row)) for row in range(100)]))


def test_image_that_cannot_be_read_leaves_no_file(many: Dataset, tmp_path: Path) -> None:
    bad = dataset([picture(row) for row in range(99)] + [picture(0, width=9)])
    with pytest.raises(ValueError, match="found 6x5 and, at row 99, 9x5") as error:
        decode(bad, "image", "label", cache=True)
    assert "\n" not in str(error.value)
    folder = tmp_path / "cache" / "timm_ktg" / "images"
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_images_that_cannot_be_kept_are_decoded_with_a_line(
    many: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, _ = decode(many, "image", "label")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.equal(wanted, decode(many, "image", "label", cache=True)[0])
    assert "Decoded images are not kept (data.cache): NotADirectoryError" in caplog.text
    monkeypatch.setattr("timm_ktg.data.cache.SHARE", 0.0)
    assert torch.equal(wanted, decode(many, "image", "label", cache=True)[0])
    assert "they take 0.0 GiB of 0.0 GiB for the cache" in caplog.text


def _decoded_sum(number: int) -> int:
    many = dataset([picture(row) for row in range(100)])
    return int(decode(many, "image", "label", cache=True)[0].long().sum())


def test_processes_that_start_together_write_one_file(many: Dataset, tmp_path: Path) -> None:
    wanted = int(decode(many, "image", "label")[0].long().sum())
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        assert list(pool.map(_decoded_sum, range(8))) == [wanted] * 8
    folder = tmp_path / "cache" / "timm_ktg" / "images"
    assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".npy"]
