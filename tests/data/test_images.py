"""Decoding: one tensor from images of any kind."""

import ast
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
