"""Mixup and CutMix, by timm, over the batches of any loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor

from ..errors import did_you_mean
from .sampling import Loader, derive_seed

MODES = ("batch", "pair", "elem")


class MixupLoader:
    """Another loader's batches, mixed, with distributions as labels.

    Mixup pairs the images of a batch, so an odd batch loses its last image; a single image stays
    as it is. timm draws from NumPy's global generator, which is set to a state that belongs to
    (seed, epoch, rank) for each batch, and put back afterwards.

    Args:
        loader: Yields images [B, 3, H, W] and labels [B].
        num_classes: Classes C.
        mixup: Alpha of mixup; 0: off.
        cutmix: Alpha of CutMix; 0: off.
        cutmix_minmax: Smallest and largest side of the pasted box, in 0..1; replaces `cutmix`.
        mixup_prob: Probability that a draw mixes at all.
        mixup_switch_prob: Probability of CutMix where both are on.
        mixup_mode: Whether to draw once for each `batch`, `pair` or `elem`.
        mixup_off_epoch: The epoch, from 0, from which nothing is mixed; 0: never. Labels are
            smoothed distributions even then.
        smoothing: Label smoothing. timm's own default is 0.1.
        seed: Determines every draw, together with epoch and rank.
        rank: This process.

    Raises:
        ValueError: Nothing is mixed, or `mixup_mode` does not exist.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        mixup_mode: str = "batch",
        mixup_off_epoch: int = 0,
        smoothing: float = 0.0,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if mixup <= 0 and cutmix <= 0 and cutmix_minmax is None:
            raise ValueError(
                "data.mixup: one of mixup, cutmix and cutmix_minmax should be on, "
                f"found mixup {mixup} and cutmix {cutmix}."
            )
        if mixup_mode not in MODES:
            raise ValueError(
                f"data.mixup_mode: `{mixup_mode}` is no mode. Modes: {', '.join(MODES)}."
                f"{did_you_mean(mixup_mode, MODES)}"
            )
        self.loader, self.mixup_off_epoch = loader, mixup_off_epoch
        self.seed, self.rank, self.epoch = seed, rank, 0
        self._mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            cutmix_minmax=cutmix_minmax,
            prob=mixup_prob,
            switch_prob=mixup_switch_prob,
            mode=mixup_mode,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and draws the next iteration has."""
        self.epoch = epoch
        self.loader.set_epoch(epoch)
        self._mixup.mixup_enabled = not self.mixup_off_epoch or epoch < self.mixup_off_epoch

    def __len__(self) -> int:
        """Return how many batches an epoch has for this rank."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield mixed images [B, 3, H, W] and soft labels, float32 [B, C], B even or 1."""
        seed = derive_seed("mixup", self.seed, self.epoch, self.rank)
        private = np.random.RandomState(np.random.MT19937(seed))
        for images, labels in self.loader:
            with _lend_global(private):
                mixed = self._mix(images, labels)
            yield mixed

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        single = len(images) == 1
        if single:  # mixed with itself, an image stays the same and its label still becomes soft
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        even = len(images) // 2 * 2
        images, labels = self._mixup(images[:even], labels[:even])
        return (images[:1], labels[:1]) if single else (images, labels)


@contextmanager
def _lend_global(private: np.random.RandomState) -> Iterator[None]:
    """Let NumPy's global generator draw for a private one, then restore the global one."""
    outer = np.random.get_state()
    np.random.set_state(private.get_state())
    try:
        yield
    finally:
        private.set_state(np.random.get_state())
        np.random.set_state(outer)
