"""Two helpers teach a timm model in Lightning's loop.

Needs: pip install timm_ktg lightning
Run:   python recipes/examples/with_lightning.py
"""

from __future__ import annotations

from typing import Any

import lightning
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import timm_ktg


class Classifier(lightning.LightningModule):
    """A model that learns from the other nodes of a recipe, too."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("resnet8_cifar", num_classes=10)

    def configure_optimizers(self) -> Any:
        """Attach between the optimizer and its schedule."""
        optimizer = SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        self.handle = timm_ktg.attach(self.model, "digits", optimizer, total)
        schedule = {"scheduler": CosineAnnealingLR(optimizer, total), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of all nodes. `gradient_clip_val` clips all of them, too."""
        images, labels = batch
        self.model(images)
        return self.handle.loss(labels)


class KnowledgeTransfer(lightning.Callback):
    """Saves the handle of the module in Lightning's checkpoints, and loads it from them."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the handle's state to a checkpoint."""
        checkpoint["timm_ktg"] = pl_module.handle.state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state; Lightning reads it before it makes the optimizer, hence the handle."""
        self.loaded = checkpoint["timm_ktg"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Load the state if there is one."""
        if self.loaded is not None:
            pl_module.handle.load_state_dict(self.loaded)
            self.loaded = None


def digits() -> TensorDataset:
    """Return scikit-learn's digits as images [3, 8, 8]."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    return TensorDataset(images[:, None].repeat(1, 3, 1, 1), torch.tensor(data.target))


if __name__ == "__main__":
    trainer = lightning.Trainer(max_epochs=5, callbacks=[KnowledgeTransfer()], accelerator="cpu")
    trainer.fit(Classifier(), DataLoader(digits(), batch_size=64, shuffle=True))
