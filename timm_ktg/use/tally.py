"""How good predictions are, summed up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error, as in the paper


@dataclass(frozen=True)
class Measured:
    """How good the predictions of a node are.

    Args:
        top1: Top-1 in percent.
        top5: Top-5 in percent.
        loss: Mean cross-entropy.
        ece: Expected calibration error, in percent.
        confusion: int64 [C, C], images by true class (row) and predicted class (column).
    """

    top1: float
    top5: float
    loss: float
    ece: float
    confusion: Tensor

    @property
    def per_class(self) -> list[float | None]:
        """Top-1 in percent by class; None for a class without images."""
        counts, right = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return [
            100 * hits / count if count else None for hits, count in zip(right, counts, strict=True)
        ]


class Tally:
    """Sums up a node's predictions.

    The images are put into 15 bins of equal width by their confidence, the probability of the
    predicted class. The expected calibration error is the mean distance between accuracy and mean
    confidence of a bin, weighted by its images.

    Args:
        classes: C.

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, Eq. 3.
    """

    def __init__(self, classes: int) -> None:
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self._loss = torch.zeros((), dtype=torch.float64)
        self._top5 = torch.zeros((), dtype=torch.int64)
        self._surplus = torch.zeros(BINS, dtype=torch.float64)  # sum of hits - confidence

    @property
    def images(self) -> int:
        """How many images were added."""
        return int(self._confusion.sum())

    def update(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add a batch.

        Args:
            logits: float32 [B, C], on the CPU.
            labels: Class indices [B], on the CPU.

        Returns:
            The predicted classes [B].
        """
        ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        predicted = ranked[:, 0]
        hits = ranked == labels[:, None]
        self._top5 += hits.sum()
        self._loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        self._confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        confidence = logits.double().softmax(-1).amax(-1)
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper end
        self._surplus.index_add_(0, bins, hits[:, 0].double() - confidence)
        return predicted

    def measured(self) -> Measured:
        """Return what all batches, at least one, give."""
        count = int(self._confusion.sum())
        return Measured(
            top1=100 * int(self._confusion.diagonal().sum()) / count,
            top5=100 * int(self._top5) / count,
            loss=float(self._loss) / count,
            ece=100 * float(self._surplus.abs().sum()) / count,
            confusion=self._confusion,
        )
