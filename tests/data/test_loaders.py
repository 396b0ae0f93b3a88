"""Samplers and loaders: order, shares, augmentation, and where random numbers come from."""

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.utils._python_dispatch import TorchDispatchMode

from timm_ktg.data import (
    EpochSampler,
    EvalSampler,
    Loader,
    MemoryLoader,
    MixupLoader,
    TransformLoader,
    derive_seed,
)
from timm_ktg.data.memory import crop_and_flip

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
AUGMENTATION = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "interpolation": "random"}
Batches = list[tuple[Tensor, Tensor]]


def pixels(size: int, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (size, 3, height, width), dtype=torch.uint8, generator=generator)


def memory(size: int = 21, *, train: bool = True, **arguments: Any) -> MemoryLoader:
    """A loader whose labels are the row numbers, so they identify the images in a batch."""
    settings = {"batch_size": 4, "mean": MEAN, "std": STD, "device": "cpu"} | arguments
    return MemoryLoader(pixels(size), torch.arange(size), train=train, **settings)


def timm_loader(
    size: int = 10, *, train: bool = True, augment: bool = False, **arguments: Any
) -> TransformLoader:
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=size)})
    images = [image.permute(1, 2, 0).numpy() for image in pixels(size, 10, 12)]
    rows = Dataset.from_dict({"image": images, "label": list(range(size))}, features)
    options = AUGMENTATION if augment else {}
    transform = create_transform(8, is_training=train, mean=MEAN, std=STD, **options)
    settings = {"batch_size": 4, "device": "cpu", "workers": 0} | arguments
    return TransformLoader(rows, "image", "label", transform, train=train, **settings)


def epoch(loader: Loader, number: int = 0) -> Batches:
    loader.set_epoch(number)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def same(left: Batches, right: Batches) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def seed_globals() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def global_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_derived_seeds_differ_in_purpose_number_and_length() -> None:
    seeds = [derive_seed("a", 1, 2), derive_seed("b", 1, 2), derive_seed("a", 2, 1)]
    seeds += [derive_seed("a", 1), derive_seed("a", 1, 2, 0), derive_seed("a", 1, 2, 1)]
    assert len(set(seeds)) == 6
    assert (
        derive_seed("order", 42, 3) == 14964323690583133557
    )  # Golden: if this changes, every run changes.


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("size", [8, 16, 17, 18, 21, 23])
def test_shares_of_all_ranks_reassemble_the_batch_of_one(size: int, world_size: int) -> None:
    alone = list(EpochSampler(size, 8, seed=1))
    samplers = [
        EpochSampler(size, 8, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = list(zip(*samplers, strict=True))
    assert all(len(sampler) == len(shares) for sampler in samplers)
    for whole, parts in zip(alone, shares, strict=False):
        assert len({len(part) for part in parts}) == 1
        assert sum(parts, []) == whole[: len(whole) - len(whole) % world_size]
    assert sum(len(part) for parts in shares for part in parts) == size - size % world_size


def test_epoch_is_a_permutation_from_seed_and_epoch() -> None:
    def order(seed: int, number: int) -> list[int]:
        sampler = EpochSampler(50, 8, seed=seed)
        sampler.set_epoch(number)
        return sum(sampler, [])

    assert sorted(order(0, 0)) == list(range(50)) and order(0, 0) == order(0, 0)
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0))}) == 3
    assert sum(EpochSampler(50, 8, seed=0, shuffle=False), []) == list(range(50))


@pytest.mark.parametrize("world_size", [1, 2])
def test_repeats_are_ordered_and_shared_as_in_timms_sampler(world_size: int) -> None:
    for rank in range(world_size):
        timms = RepeatAugSampler(range(300), world_size, rank, shuffle=False, num_repeats=3)
        ours = EpochSampler(
            300, 32, seed=0, rank=rank, world_size=world_size, shuffle=False, repeats=3
        )
        found, expected = sum(ours, []), list(timms)
        assert len(found) == 300 // world_size  # timm rounds down to a multiple of 256
        assert found[: len(expected)] == expected and len(expected) == 256 // world_size


def test_repeated_images_are_augmented_anew() -> None:
    pixels = torch.arange(64 * 48).reshape(64, 3, 4, 4).to(torch.uint8)
    loader = MemoryLoader(
        pixels,
        torch.arange(64),
        batch_size=8,
        mean=MEAN,
        std=STD,
        device="cpu",
        train=True,
        pad=2,
        repeats=4,
    )
    batches = list(loader)
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels.view(-1, 4), labels[::4, None].expand(-1, 4))
    assert len(labels) == 64 and len(set(labels.tolist())) == 16
    images = torch.cat([images for images, _ in batches]).view(16, 4, -1)
    assert sum(not torch.equal(four[0], four[1]) for four in images) > 12


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 processes that share it, found 64"):
        EpochSampler(100, 64, seed=0, world_size=3)
    with pytest.raises(ValueError, match="batch_size: .* found 0"):
        EpochSampler(100, 0, seed=0)
    with pytest.raises(ValueError, match="an image for each of 4 processes, found 3"):
        EpochSampler(3, 4, seed=0, world_size=4)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9])
def test_evaluation_sees_every_image_once(size: int) -> None:
    seen: list[int] = []
    for rank in range(3):
        sampler = EvalSampler(size, 4, rank=rank, world_size=3)
        assert len(list(sampler)) == len(sampler)
        assert sum(sampler, []) == list(range(rank, size, 3))
        labels = [y for _, y in epoch(memory(size, train=False, rank=rank, world_size=3))]
        seen += torch.cat(labels).tolist() if labels else []
    assert sorted(seen) == list(range(size))


def test_evaluation_is_ordered_and_only_normalized() -> None:
    images = torch.cat([x for x, _ in epoch(memory(train=False))])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(images, (pixels(21) / 255 - mean) / std)
    assert same(epoch(memory(train=False), 0), epoch(memory(train=False), 1))


@pytest.mark.parametrize("amount", [0, 1, 4])
def test_augmentation_matches_one_image_at_a_time(amount: int) -> None:
    images, generator = pixels(40, 6, 9), torch.Generator().manual_seed(0)
    top, left = torch.randint(2 * amount + 1, (2, 40), generator=generator)
    flip = torch.rand(40, generator=generator) < 0.5
    found = crop_and_flip(images, top, left, flip, amount)
    for image, y, x, mirrored, result in zip(images, top, left, flip, found, strict=True):
        padded = pad(image.float(), [amount] * 4, mode="reflect")
        crop = padded[:, y : y + 6, x : x + 9]
        assert torch.equal(result.float(), crop.flip(-1) if mirrored else crop)


def test_offsets_and_flips_are_uniform() -> None:
    size, amount = 4000, 2
    ramp = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(size, 3, 5, 5)
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1), "device": "cpu", "train": True}
    loader = MemoryLoader(ramp, torch.zeros(size), batch_size=size, pad=amount, **settings)
    ((images, _),) = epoch(loader)
    grid = [images[:, 0, y, x].mul(255).round().long() for y, x in ((2, 2), (2, 1), (2, 3))]
    assert grid[0].bincount(minlength=25).sub(size / 25).abs().max() < 5 * (size / 25) ** 0.5
    flipped = (grid[1] > grid[2]).double().mean()
    assert 0 < flipped < 1


def test_flip_probability_is_kept() -> None:
    row = torch.tensor([0, 255], dtype=torch.uint8).expand(3000, 3, 2, 2)
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1), "device": "cpu", "train": True, "pad": 0}
    for hflip in (0.0, 0.3, 1.0):
        loader = MemoryLoader(row, torch.zeros(3000), batch_size=3000, hflip=hflip, **settings)
        ((images, _),) = epoch(loader)
        assert abs(images[:, 0, 0, 0].mean().item() - hflip) < 0.03


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.pad: .* below the image's size, 8x8.* Found 8"):
        memory(pad=8)
    with pytest.raises(ValueError, match=r"data\.std: should be above 0, found \(1, 0, 1\)"):
        memory(std=(1, 0, 1))


def mixed(
    inner: Callable[..., Loader] = memory, size: int = 21, batch_size: int = 4, **arguments: Any
) -> MixupLoader:
    settings = {"mixup": 0.8, "cutmix": 1.0, "num_classes": 21, "smoothing": 0.1} | arguments
    return MixupLoader(inner(size, batch_size=batch_size), **settings)


class Constant:
    """A loader with the same batches in every epoch, so any difference comes from later draws."""

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((pixels(4).float(), torch.arange(4)) for _ in range(3))


def only_augmented(seed: int, rank: int) -> MemoryLoader:
    twins = pixels(1).expand(24, -1, -1, -1)
    settings = {"mean": MEAN, "std": STD, "device": "cpu", "train": True, "world_size": 2}
    return MemoryLoader(twins, torch.zeros(24), batch_size=8, seed=seed, rank=rank, **settings)


def only_mixed(seed: int, rank: int) -> MixupLoader:
    return MixupLoader(Constant(), num_classes=4, mixup=1.0, cutmix=1.0, seed=seed, rank=rank)


@pytest.mark.parametrize("make", [only_augmented, only_mixed])
def test_draws_belong_to_seed_epoch_and_rank(make: Callable[[int, int], Loader]) -> None:
    seed_globals()
    before = global_states()
    base = epoch(make(3, 0), 5)
    assert before == global_states()
    loader = make(3, 0)
    assert not same(base, epoch(loader, 4))
    assert same(base, epoch(loader, 5)) and same(base, list(loader))
    assert not same(base, epoch(make(4, 0), 5)) and not same(base, epoch(make(3, 1), 5))


def test_iteration_never_waits_for_the_device() -> None:
    class Record(TorchDispatchMode):
        names: set[str] = set()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loaders = [memory(), memory(train=False)]
    with Record() as record:
        for loader in loaders:
            assert len(list(loader)) == 6
    assert {"gather", "index", "randint"} <= record.names
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "item", "equal"}
    assert not waiting & record.names


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixed_labels_are_distributions_and_batches_even(mode: str) -> None:
    batches = epoch(mixed(batch_size=5, mixup_mode=mode))
    assert [len(images) for images, _ in batches] == [4, 4, 4, 4, 1]
    for images, labels in batches:
        assert labels.shape == (len(images), 21) and labels.dtype == torch.float32
        torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))
    (single, label), (plain, row) = batches[-1], epoch(memory(batch_size=5))[-1]
    torch.testing.assert_close(single, plain)
    torch.testing.assert_close(label, one_hot(row, 21) * 0.9 + 0.1 / 21)


def test_mixed_images_follow_their_labels() -> None:
    def loader() -> MemoryLoader:
        return memory(size=20, mean=(0, 0, 0))

    both = zip(
        epoch(MixupLoader(loader(), num_classes=20, mixup=1.0)), epoch(loader()), strict=True
    )
    for (images, labels), (plain, rows) in both:
        share = labels.gather(1, rows[:, None])[:, :, None, None]
        torch.testing.assert_close(images, plain * share + plain.flip(0) * (1 - share))


def test_mixing_ends_at_mixup_off_epoch() -> None:
    loader, plain = mixed(size=20, mixup_off_epoch=2), memory(size=20)
    assert not torch.equal(epoch(loader, 1)[0][0], epoch(plain, 1)[0][0])
    (images, labels), (wanted, rows) = epoch(loader, 2)[0], epoch(plain, 2)[0]
    assert torch.equal(images, wanted)
    torch.testing.assert_close(labels, one_hot(rows, 21) * 0.9 + 0.1 / 21)
    assert not torch.equal(epoch(loader, 1)[0][0], epoch(plain, 1)[0][0])


def test_mixing_without_a_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.mixup: one of mixup, cutmix .* should be on"):
        MixupLoader(memory(), num_classes=21)
    with pytest.raises(ValueError, match=r"`bach` is no mode\. .* Did you mean `batch`\?"):
        MixupLoader(memory(), num_classes=21, mixup=1.0, mixup_mode="bach")
    minmax = MixupLoader(memory(), num_classes=21, cutmix_minmax=(0.3, 0.8))
    assert not same(epoch(minmax), epoch(memory()))


@pytest.mark.parametrize("workers", [0, 2])
def test_timm_epoch_can_be_repeated(workers: int) -> None:
    def run(loader: TransformLoader, number: int) -> Batches:
        seed_globals()
        return epoch(loader, number)

    make = lambda: timm_loader(workers=workers, augment=True)  # noqa: E731
    loader = make()
    first, second = run(loader, 0), run(loader, 1)
    assert [len(labels) for _, labels in first] == [4, 4, 2]
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == list(range(10))
    assert first[0][0].shape == (4, 3, 8, 8) and first[0][0].dtype == torch.float32
    assert same(second, run(make(), 1)) and not same(first, second)


def test_timm_workers_leave_the_global_generators_alone() -> None:
    seed_globals()
    before = global_states()
    first = epoch(timm_loader(workers=1, augment=True))
    assert same(first, epoch(timm_loader(workers=0, augment=True)))
    assert before == global_states()
    torch.manual_seed(1)
    assert same(first, epoch(timm_loader(workers=1, augment=True)))
    assert not same(first, epoch(timm_loader(workers=1, seed=1, augment=True)))


@pytest.mark.parametrize("number", ["epoch", "rank", "seed"])
def test_timm_workers_augment_anew_for_every_epoch_rank_and_seed(number: str) -> None:
    def images(value: int) -> Tensor:
        rows = {"image": [pixels(1, 10, 12)[0].permute(1, 2, 0).numpy()] * 4, "label": [0] * 4}
        features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=1)})
        transform = create_transform(8, is_training=True, mean=MEAN, std=STD, **AUGMENTATION)
        options = {"rank": value if number == "rank" else 0, "world_size": 2, "workers": 1}
        loader = TransformLoader(
            *(Dataset.from_dict(rows, features), "image", "label", transform),
            **{"batch_size": 4, "device": "cpu", "train": True, **options},
            seed=value if number == "seed" else 0,
        )
        # All images are the same, so that batches differ by their augmentation alone.
        return epoch(loader, value if number == "epoch" else 0)[0][0]

    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))


def test_timm_augmentation_is_the_same_with_any_number_of_workers_and_processes() -> None:
    def images(number: int, **arguments: Any) -> list[Tensor]:
        return [batch for batch, _ in epoch(timm_loader(augment=True, **arguments), number)]

    for number in (0, 3):
        alone = images(number)
        assert all(map(torch.equal, alone, images(number, workers=2)))
        parts = [images(number, workers=1, rank=rank, world_size=2) for rank in (0, 1)]
        assert all(map(torch.equal, alone, map(torch.cat, zip(*parts, strict=True))))


def test_timm_workers_stay_for_all_epochs_and_draw_anew() -> None:
    loader = timm_loader(workers=2, augment=True)
    kept = [epoch(loader, number) for number in (0, 1, 0)]
    workers = loader._loader._iterator._workers
    next(iter(loader))  # broken off
    kept.append(epoch(loader, 2))
    assert loader._loader._iterator._workers is workers
    fresh = [epoch(timm_loader(augment=True), number) for number in (0, 1, 0, 2)]
    assert all(map(same, kept, fresh))


def test_timm_evaluation_is_exact_over_ranks() -> None:
    found = [epoch(timm_loader(train=False, rank=rank, world_size=3)) for rank in range(3)]
    rows = [label for batches in found for _, labels in batches for label in labels.tolist()]
    assert sorted(rows) == list(range(10))
    assert same(epoch(timm_loader(train=False)), epoch(timm_loader(train=False, seed=9), 7))


def test_timm_samples_survive_the_way_to_a_spawned_worker() -> None:
    samples = timm_loader(train=False)._loader.dataset
    ((image, label),) = pickle.loads(pickle.dumps(samples)).__getitems__([(0, 3)])
    ((same, _),) = samples.__getitems__([(0, 3)])
    assert label == 3 and torch.equal(image, same)


def test_timm_batches_can_be_mixed() -> None:
    ((images, labels), *_) = epoch(mixed(timm_loader))
    assert images.shape == (4, 3, 8, 8) and labels.shape == (4, 21)
