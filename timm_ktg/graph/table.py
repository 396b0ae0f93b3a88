"""The logits of a frozen node in a table, instead of computing them in every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .losses import NodeOutput

CHUNK = 32  # images per forward; fixed, so that results do not depend on how many are missing


class LogitTable:
    """The logits of a frozen node by view: an image as one of its possible augmentations.

    A row is computed when its view is drawn for the first time, and rounded to the table's type
    then, too. So a run gives the same with a full table, an empty one, and one that was lost.

    Args:
        logits: [R, C] for R views, float16; rows with zeros are not known yet. It may be a file in
            memory that several processes share: all of them write the same values.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def look_up(
        self, views: Tensor, images: Tensor, node: Callable[[Tensor], NodeOutput]
    ) -> NodeOutput:
        """Return the node's output, logits [B, C] in float32, on the device of the images.

        Args:
            views: Rows, int64 [B].
            images: The images as these views [B, 3, H, W].
            node: Computes the output for images.
        """
        rows = views.cpu()
        found = self.logits[rows]
        # One zero is enough: another process may be in the middle of a row, or have died there.
        missing = (found == 0).any(-1).nonzero()[:, 0]
        for part in torch.split(missing, CHUNK) if len(missing) else ():
            padded = torch.cat([part, part[:1].expand(CHUNK - len(part))])
            computed = node(images[padded.to(images.device)]).logits.detach()
            found[part] = computed[: len(part)].to(self.logits)
            self.logits[rows[part]] = found[part]
        return NodeOutput(found.to(images.device, torch.float32))
