"""Whether figures of runs are of the same images, without which no difference means anything."""

from __future__ import annotations

from collections.abc import Sequence

from ..records.result import RunResult


def unlike_images(first: RunResult, second: RunResult) -> tuple[str, str] | None:
    """Return in what the images of two results differ: that of the first, and of the second.

    The fingerprint of the data does not decide it, because it covers the training images, too.
    What an earlier version did not write down counts as the same.

    Returns:
        Such as `("360 images", "15 images")`; None: the results do not tell the images apart.
    """
    if first.split != second.split:
        return f"{first.split} images", f"{second.split} images"
    if first.images and second.images and first.images != second.images:
        return f"{first.images:,} images", f"{second.images:,} images"
    seeds = first.data.split_seed, second.data.split_seed
    if None not in seeds and seeds[0] != seeds[1]:
        return f"held out by split_seed {seeds[0]}", f"by split_seed {seeds[1]}"
    one, two = first.data.class_names, second.data.class_names
    if not one or not two or one == two:
        return None
    if len(one) != len(two):
        return f"{len(one):,} classes", f"{len(two):,} classes"
    index = next(index for index, name in enumerate(one) if name != two[index])
    return f"class {index} is `{one[index]}`", f"class {index} is `{two[index]}`"


def on_same_images(first: Sequence[RunResult], second: Sequence[RunResult]) -> bool:
    """Return whether all seeds of two runs are of the same images, as far as they tell."""
    return all(unlike_images(one, two) is None for one in first for two in second)
