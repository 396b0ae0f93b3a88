"""A loss and a gate with parameters of their own, for tests."""

import torch.nn.functional as F
from torch import Tensor, nn

from timm_ktg import EdgeContext, NodeOutput, register_gate, register_loss


class projected(nn.Module):  # noqa: N801 (named as it is registered)
    """The squared distance between the source's logits and a projection of the destination's."""

    def __init__(
        self, source: NodeOutput, destination: NodeOutput, *, width: int = 3, norm: bool = True
    ) -> None:
        super().__init__()
        classes = destination.logits.shape[-1]
        self.norm = nn.BatchNorm1d(classes) if norm else nn.Identity()
        self.down = nn.Linear(classes, width)
        self.up = nn.Linear(width, source.logits.shape[-1])

    def forward(
        self, source: NodeOutput, destination: NodeOutput, labels: Tensor, *, temperature: float
    ) -> Tensor:
        found = self.up(self.down(self.norm(destination.logits.float())))
        return F.mse_loss(found, source.logits.float() / temperature, reduction="none").mean(-1)


class learned(nn.Module):  # noqa: N801
    """Weighs every sample's loss by a linear layer of the source's logits."""

    def __init__(self, source: NodeOutput, destination: NodeOutput) -> None:
        super().__init__()
        self.score = nn.Linear(source.logits.shape[-1], 1)

    def forward(self, losses: Tensor, context: EdgeContext) -> Tensor:
        weights: Tensor = self.score(context.source.logits.float()).sigmoid()[:, 0]
        return losses * weights


def register() -> None:
    register_loss(projected)
    register_gate(learned)
