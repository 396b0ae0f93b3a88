"""Images read and augmented as timm does it, in worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import did_you_mean
from .images import read_image, undecoded
from .sampling import create_sampler, derive_seed

if TYPE_CHECKING:
    from datasets import Dataset

_Arguments = dict[str, Any]
_Sample = tuple[Tensor, int]
REMODES = ("const", "rand", "pixel")
INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "random")


class TransformLoader:
    """Batches by timm's transforms, in our order and our shares.

    Not `timm.data.create_loader`: that drops the last partial training batch, and pads an
    evaluation on several processes until counts are no longer exact.

    Workers are started anew for every epoch, seeded by (seed, epoch, rank): with the same number
    of workers an epoch can be repeated. With `workers=0` the transforms draw from the global
    generators of Python, NumPy and PyTorch, which the training loop seeds as an epoch starts.

    Args:
        dataset: The split.
        input_key: The column of images.
        target_key: The column of class indices.
        batch_size: Images a step over all ranks together.
        img_size: Height and width of the images that come out.
        mean: [3] means of the channels, in 0..1.
        std: [3] standard deviations of the channels, in 0..1.
        device: Where batches are moved.
        train: Shuffle and augment; the arguments from `scale` to `recount` are for this.
        workers: Processes that read; 0 reads in this one.
        seed: With epoch and rank, determines every draw.
        rank: This process, 0 .. world_size - 1.
        world_size: The number of processes.
        scale: Range of the crop's area, in 0..1 of the image's.
        ratio: Range of the crop's aspect ratio.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Factor of the color jitter; none where `auto_augment` is given.
        auto_augment: timm's policy string, such as `rand-m9-mstd0.5` (`aa` on timm's command line).
        reprob: Probability of random erasing.
        remode: What erases: `const`, `rand` or `pixel`.
        recount: How many regions are erased.
        interpolation: How pixels are resized; `random` in training only (bilinear elsewhere).
        crop_pct: The centre crop of evaluation, in 0..1 of the resized image.
        no_aug: Train on images that are resized and centre-cropped, nothing else.

    Raises:
        ValueError: If timm does not know `interpolation`, `remode` or `auto_augment`, or in
            training `batch_size` is no multiple of `world_size`.
    """

    def __init__(
        self,
        dataset: "Dataset",
        input_key: str,
        target_key: str,
        *,
        batch_size: int,
        img_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        train: bool,
        workers: int = 4,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.4,
        auto_augment: str | None = None,
        reprob: float = 0.0,
        remode: str = "pixel",
        recount: int = 1,
        interpolation: str = "bilinear",
        crop_pct: float | None = None,
        no_aug: bool = False,
    ) -> None:
        crop: _Arguments = {"scale": scale, "ratio": ratio, "crop_pct": crop_pct}
        flip: _Arguments = {"hflip": hflip, "vflip": vflip, "interpolation": interpolation}
        color: _Arguments = {"color_jitter": color_jitter, "auto_augment": auto_augment}
        erase: _Arguments = {"re_prob": reprob, "re_mode": remode, "re_count": recount}
        norm: _Arguments = {"mean": tuple(mean), "std": tuple(std)}
        arguments = crop | flip | color | erase | norm
        transform = _create_transform(img_size, train, no_aug, arguments)
        self.device, self.seed, self.rank, self.epoch = torch.device(device), seed, rank, 0
        self._sampler = create_sampler(
            len(dataset), batch_size, train=train, seed=seed, rank=rank, world_size=world_size
        )
        stored = undecoded(dataset, input_key, target_key)
        self._generator = torch.Generator()
        self._loader = DataLoader(
            cast("TorchDataset[_Sample]", _Samples(stored, input_key, target_key, transform)),
            batch_sampler=self._sampler,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=self._generator,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation the next iteration has."""
        self.epoch = epoch
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """How many batches an epoch has for this rank."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised float32 [B, 3, H, W] and int64 [B], this rank's share of each batch."""
        # The loader seeds its workers with what it draws from here.
        self._generator.manual_seed(derive_seed("workers", self.seed, self.epoch, self.rank))
        for images, labels in self._loader:
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )


@dataclass(frozen=True)
class _Samples:
    """Transformed images by index; at the top of the module, for workers that unpickle it."""

    dataset: "Dataset"
    input_key: str
    target_key: str
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Sample:
        row = self.dataset[index]
        image = read_image(row[self.input_key], self.input_key, index)
        return self.transform(image), row[self.target_key]


def _create_transform(
    img_size: int, train: bool, no_aug: bool, arguments: _Arguments
) -> Callable[[Image.Image], Tensor]:
    """Create timm's transform; what timm refuses, by assertion, becomes a ValueError."""
    _check_choice("interpolation", arguments["interpolation"], INTERPOLATIONS)
    _check_choice("remode", arguments["re_mode"], REMODES)
    if not train and arguments["interpolation"] == "random":
        arguments = arguments | {"interpolation": "bilinear"}
    try:
        transform: Callable[[Image.Image], Tensor] = create_transform(
            img_size, train, no_aug, **arguments
        )
    except AssertionError as error:
        policy = arguments["auto_augment"]
        raise ValueError(f"data.aa: `{policy}`: {error}.") from error
    return transform


def _check_choice(field: str, name: str, choices: Sequence[str]) -> None:
    if name not in choices:
        raise ValueError(
            f"data.{field}: `{name}` is not known. Should be one of: {', '.join(choices)}."
            f"{did_you_mean(name, choices)}"
        )
