"""The examples for other loops: they train, and a resumed run goes on bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.training_cases import same_state, state_of

EXAMPLES = Path(__file__).parents[2] / "recipes" / "examples"
EPOCHS = 2
BATCH = 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("workplace"),
    # What these packages warn of is between them and torch.
    pytest.mark.filterwarnings("default"),
]


def example(name: str, package: str) -> ModuleType:
    pytest.importorskip(package, reason=f"{package} is not installed; only this example needs it")
    return loaded(name)


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def some(data: TensorDataset) -> TensorDataset:
    return TensorDataset(*(tensor[: 4 * BATCH] for tensor in data.tensors))


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"with_lightning", "with_hf_trainer"}


def test_lightning_resumes_the_graph_bit_for_bit(tmp_path: Path) -> None:
    example_ = example("with_lightning", "lightning")
    data = some(example_.digits())

    def fit(epochs: int, resume: Path | None = None) -> Any:
        import lightning

        lightning.seed_everything(0)
        module = example_.Classifier()
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            callbacks=[example_.KnowledgeTransfer(), Stop(epochs)],
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            gradient_clip_val=1.0,
        )
        trainer.fit(module, DataLoader(data, BATCH), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    import lightning

    class Stop(lightning.Callback):
        def __init__(self, after: int) -> None:
            self.after = after

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch + 1 >= self.after

    whole, half = fit(EPOCHS), fit(1)
    assert half.handle.clock.updates == 4
    rest = fit(EPOCHS, resume=tmp_path / "1.ckpt")
    assert rest.handle.clock.updates == whole.handle.clock.updates == 8
    assert same_state(state_of(rest.handle.graph), state_of(whole.handle.graph))
    assert not same_state(state_of(half.handle.graph), state_of(whole.handle.graph))


def test_hf_trainer_resumes_the_graph_bit_for_bit(tmp_path: Path) -> None:
    example_ = example("with_hf_trainer", "transformers")
    from transformers import TrainingArguments

    data = some(example_.digits())

    def train(resume: str | None) -> tuple[nn.Module, Any]:
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=0.1,
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=True,
        )
        torch.manual_seed(0)
        model = timm.create_model("resnet8_cifar", num_classes=10)
        trainer = example_.build_trainer(arguments, data, model)
        trainer.train(resume_from_checkpoint=resume)
        trainer.eval_dataset = Subset(data, range(BATCH))
        assert trainer.evaluate()["eval_loss"] > 0
        (ours,) = [
            each
            for each in trainer.callback_handler.callbacks
            if isinstance(each, example_.KnowledgeTransfer)
        ]
        return model, ours.handle

    _, whole = train(None)
    assert (tmp_path / "checkpoint-4" / "timm_ktg.pt").is_file()
    _, rest = train(str(tmp_path / "checkpoint-4"))
    assert rest.clock.updates == whole.clock.updates == 8
    assert same_state(state_of(rest.graph), state_of(whole.graph))


def test_hf_trainer_weighs_the_batches_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it gets `compute_loss_func`, the Trainer does not divide by the number of batches."""
    stand_in = MagicMock()
    stand_in.TrainerCallback = object
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    example_ = loaded("with_hf_trainer")
    arguments = SimpleNamespace(
        learning_rate=0.1, train_batch_size=6, gradient_accumulation_steps=2, num_train_epochs=1
    )
    data = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8))
    model = timm.create_model("resnet8_cifar", num_classes=10).train()
    example_.build_trainer(arguments, data, model)
    loss = stand_in.Trainer.call_args.kwargs["compute_loss_func"]

    def of(rows: slice, **given: torch.Tensor) -> float:
        images, labels = data[rows]
        return float(loss(model(images), labels, **given).detach())

    parts = [slice(6), slice(6, 8)]
    together = sum(of(rows, num_items_in_batch=torch.tensor(8)) for rows in parts)
    large, small = map(of, parts)
    assert together == pytest.approx((6 * large + 2 * small) / 8)
