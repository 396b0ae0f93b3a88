"""Two helpers teach a timm model in the loop of Hugging Face's Trainer.

Needs: pip install timm_ktg transformers
Run:   python recipes/examples/with_hf_trainer.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

import timm_ktg
from timm_ktg.plugin.attach import Attachment


class KnowledgeTransfer(TrainerCallback):
    """Saves a handle in the Trainer's checkpoints, loads it from them, and clips its auxiliaries.

    Args:
        handle: What `attach` returned.
    """

    def __init__(self, handle: Attachment) -> None:
        self.handle = handle

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Add the handle's state to a checkpoint."""
        torch.save(self.handle.state_dict(), _file(args, state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Load the state if the Trainer resumes."""
        if state.global_step:
            self.handle.load_state_dict(torch.load(_file(args, state), weights_only=True))

    def on_pre_optimizer_step(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Clip the auxiliaries as the Trainer has just clipped its own model."""
        graph = self.handle.graph
        for name, parameters in graph.parameter_owners().items():
            if name != graph.target and args.max_grad_norm:
                nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "timm_ktg.pt"


def build_trainer(args: TrainingArguments, train: TensorDataset, model: nn.Module) -> Trainer:
    """Return a Trainer in which the other nodes of a recipe teach a model.

    Args:
        args: Arguments of the Trainer.
        train: Images and labels.
        model: A timm model.
    """
    # The Trainer makes the schedule itself, so the optimizer has to be there before it.
    optimizer = SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    images_per_update = args.train_batch_size * args.gradient_accumulation_steps
    updates = math.ceil(len(train) / images_per_update) * int(args.num_train_epochs)
    handle = timm_ktg.attach(model, "digits", optimizer, updates)

    def loss(
        logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None, **_: Any
    ) -> Tensor:
        if not model.training:
            return F.cross_entropy(logits, labels)
        # The Trainer adds up the losses of an update's batches, and says how many images they hold.
        share = 1 if num_items_in_batch is None else len(labels) / num_items_in_batch
        return handle.loss(labels) * share

    return Trainer(
        model,
        args,
        data_collator=_batch,
        train_dataset=train,
        compute_loss_func=loss,
        optimizers=(optimizer, None),
        callbacks=[KnowledgeTransfer(handle)],
    )


def _batch(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"x": torch.stack(images), "labels": torch.stack(labels)}  # timm's forward takes `x`


def digits() -> TensorDataset:
    """Return scikit-learn's digits as images [3, 8, 8]."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    return TensorDataset(images[:, None].repeat(1, 3, 1, 1), torch.tensor(data.target))


if __name__ == "__main__":
    arguments = TrainingArguments(
        "runs/with-hf-trainer",
        num_train_epochs=5,
        per_device_train_batch_size=64,
        learning_rate=0.1,
        lr_scheduler_type="cosine",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],  # or an evaluation would give them to the model
    )
    student = timm.create_model("resnet8_cifar", num_classes=10)
    build_trainer(arguments, digits(), student).train()
