"""How fast timm's pipeline reads images beside timm's own loader, and what a long epoch takes.

    python -m tests.benchmarks.loading [--repeats N] [--memory]

Every variant reads the same JPEGs of 256x256 in an epoch of batches of 64, with timm's transforms
of an ImageNet training to 224x224 and two workers, in turn, back and forth, after a round that does
not count. Workers stay. `timm` is `timm.data.create_loader` over `timm.data.ImageDataset`, with its
prefetcher; `ours` is the loader of `pipeline: timm` on the same folder; `stream` is the one of
`streaming: true` on parquet files with the same JPEGs.

With `--memory`: what a process and its workers hold, median and peak, in an epoch of 10,000 small
images and in one of 1,281,167, streamed from the same parquet files, each in a process of its own.
That is the memory of the process (RSS) and what each worker does not share (USS). Shares of what is
shared (PSS) would depend on what else runs.

Measured on 2 cores of an Intel Xeon, torch 2.15.0, timm 1.0.31, commit 0338b96: timm over ours
1.001 (quartiles 0.984 to 1.022), timm over stream 1.021 (0.991 to 1.065), n=15; memory 1,127 and
1,155 MiB, peaks 1,127 and 1,156, n=1 each. Looked at once by hand (PSS, 40 files), it stayed within
820 to 828 MiB between 100,000 and 600,000 images.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import ClassLabel, Dataset, Features, disable_progress_bars
from datasets import Image as ImageFeature
from PIL import Image
from timm.data import (
    IMAGENET_DEFAULT_MEAN as MEAN,
)
from timm.data import (
    IMAGENET_DEFAULT_STD as STD,
)
from timm.data import ImageDataset, create_loader, create_transform

from tests.benchmarks.ratios import Group, Ratio, Seconds, Variants, header, line, provenance
from timm_ktg.data import Stream, StreamLoader, TransformLoader, load_splits, load_streams
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.delivery import delivery

IMAGES, BATCH, WORKERS, SIDE = 512, 64, 2, 256
AUGMENTATION = {"scale": (0.08, 1.0), "hflip": 0.5, "color_jitter": 0.4, "interpolation": "bicubic"}
RATIOS = (Ratio("timm", "ours", (">=", 1.0)), Ratio("timm", "stream", (">=", 1.0)))
MANY, FEW = 1_281_167, 10_000


def jpegs(count: int, side: int) -> list[bytes]:
    """Return JPEGs with coarse noise, each another one."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        noise = rng.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((side, side)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def write_parquet(folder: Path, images: list[bytes], count: int, file_rows: int) -> None:
    """Write images, again and again, as parquet files of some rows each."""
    folder.mkdir()
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=10)})
    for number, start in enumerate(range(0, count, file_rows)):
        rows = range(start, min(start + file_rows, count))
        column = [{"bytes": images[row % len(images)], "path": None} for row in rows]
        part = Dataset.from_dict({"image": column, "label": [row % 10 for row in rows]}, features)
        part.to_parquet(folder / f"train-{number:05d}.parquet", batch_size=500)


def variants(folder: Path) -> Variants:
    """Return the loaders."""
    images = jpegs(IMAGES, SIDE)
    for number, image in enumerate(images):
        path = folder / "jpegs" / "train" / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    write_parquet(folder / "parquet", images, IMAGES, IMAGES // 4)
    way = delivery(DataConfig(), MEAN, STD, (224, 224), torch.device("cpu"), train=True)
    transform = create_transform(
        224, is_training=True, use_prefetcher=way.as_bytes, mean=MEAN, std=STD, **AUGMENTATION
    )
    options: dict[str, Any] = {
        **{"batch_size": BATCH, "device": "cpu", "train": True, "workers": WORKERS},
        **{"to_device": way.to_device},
    }
    found = load_splits(str(folder / "jpegs"), test_split=None).train
    streamed = load_streams(str(folder / "parquet"), test_split=None).train
    loaders: dict[str, Any] = {
        "timm": create_loader(
            ImageDataset(str(folder / "jpegs" / "train")),
            *(224, BATCH),
            is_training=True,
            num_workers=WORKERS,
            device=torch.device("cpu"),
            **AUGMENTATION,
        ),
        "ours": TransformLoader(found, "image", "label", transform, **options),
        "stream": StreamLoader(streamed, "image", "label", transform, num_classes=10, **options),
    }
    return {name: partial(timed, partial(epoch, loader)) for name, loader in loaders.items()}


def epoch(loader: Iterable[Any]) -> None:
    """Read an epoch, the next one where the loader counts them."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(getattr(loader, "next", 0))
        loader.next = getattr(loader, "next", 0) + 1
    assert sum(len(labels) for _, labels in loader) == IMAGES


def timed(function: Callable[[], object]) -> Seconds:
    """Return what a call takes, workers included."""
    before, wall = used(), time.perf_counter()
    function()
    return Seconds(used() - before, time.perf_counter() - wall)


def used() -> float:
    """Return the CPU time of this process and of its workers that live."""
    this = psutil.Process()
    times = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def hold(folder: str, count: int) -> None:
    """Read an epoch of a stream, and print its images, and the median and peak memory in MiB."""
    gc.freeze()  # as a training does
    stream = load_streams(folder, test_split=None).train
    assert isinstance(stream, Stream)
    stream = replace(stream, size=count)
    loader = StreamLoader(
        *(stream, "image", "label", as_bytes),
        **{
            "num_classes": 10,
            "batch_size": 256,
            "device": "cpu",
            "train": True,
            "workers": WORKERS,
        },
    )
    samples, done = [0], threading.Event()

    def watch() -> None:
        this = psutil.Process()
        while not done.wait(0.25):
            held = this.memory_info().rss
            for each in this.children(recursive=True):
                try:
                    held += each.memory_full_info().uss
                except psutil.Error:  # it has just ended
                    continue
            samples.append(held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    images = sum(len(labels) for _, labels in loader)
    done.set()
    watcher.join()
    print(images, *(round(each(samples[1:]) / 2**20) for each in (statistics.median, max)))


def as_bytes(image: Image.Image) -> torch.Tensor:
    """Return an image as it is."""
    return torch.from_numpy(np.array(image))


def measure_memory(folder: Path, repeats: int) -> None:
    """Print what a short epoch and a long one hold, in turn."""
    write_parquet(folder / "files", jpegs(64, 16), MANY, 5_000)
    print(provenance(), f"\n{'images':>10}{'median MiB':>12}{'peak MiB':>12}", flush=True)
    for _ in range(repeats):
        for count in (FEW, MANY):
            command = [sys.executable, "-m", "tests.benchmarks.loading", "--hold", str(count)]
            command.append(str(folder / "files"))
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            read, median, peak = map(int, done.stdout.split())
            print(f"{read:>10,}{median:>12}{peak:>12}", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loading")
    parser.add_argument("--repeats", type=int, default=15, help="rounds, at least 5")
    parser.add_argument("--memory", action="store_true", help="measure memory, not speed")
    parser.add_argument("--hold", nargs=2, metavar=("COUNT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    disable_progress_bars()
    if arguments.hold:
        hold(arguments.hold[1], int(arguments.hold[0]))
        return
    with tempfile.TemporaryDirectory() as name:
        if arguments.memory:
            measure_memory(Path(name), arguments.repeats)
            return
        print(header(), flush=True)
        results = Group(partial(variants, Path(name)), RATIOS).measure(arguments.repeats)
        print("\n".join(line("load", ratio, results) for ratio in RATIOS))


if __name__ == "__main__":
    main()
