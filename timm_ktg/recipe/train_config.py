"""The section `train`: optimizer, schedule, precision. The defaults are the paper's."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import timm.optim
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ..errors import did_you_mean
from .section import Section, Share, checked


def _optimizer_problem(name: str) -> str | None:
    known = [str(each) for each in timm.optim.list_optimizers()]
    if name in known:
        return None
    return f"timm has no optimizer `{name}`.{did_you_mean(name, known)}"


def _no_is_a_word(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


def _rungs_problem(rungs: list[float]) -> str | None:
    rise = all(low < high for low, high in pairwise([0, *rungs]))
    if rise and rungs[-1:] == [1]:
        return None
    return f"should be shares of train.epochs that rise from above 0 to 1. Found {rungs}."


Rungs = Annotated[list[float], checked(_rungs_problem)]


class TrainConfig(Section):
    """Optimizer, schedule, precision; names shared with timm's training script mean the same."""

    epochs: PositiveInt = 200
    """Number of epochs; warmup_prefix and cooldown_epochs add to it."""
    batch_size: PositiveInt = 64
    """Images per optimizer update, over all processes and accumulation steps."""
    eval_metric: Literal["top1", "loss"] | None = None
    """Also keep the epoch whose target is best by this on the validation images, in `best/`; null:
    only the last one, which is what a run reports either way. A search keeps none."""
    eval_interval: PositiveInt = 1
    """Epochs from one evaluation on the validation images to the next; the last epoch always has
    one. A search evaluates at its rungs only."""
    log_interval: PositiveInt = 50
    """Updates from one reading of the running loss, for the bar, to the next; each reading waits
    for the device."""
    grad_accum_steps: PositiveInt = 1
    """Number of parts to compute a batch in, to save memory."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, order and augmentation."""
    opt: Annotated[str, checked(_optimizer_problem)] = "sgd"
    """timm's name of the optimizer; `sgd` has Nesterov momentum, `momentum` does not."""
    lr: PositiveFloat = 0.1
    """Learning rate."""
    momentum: NonNegativeFloat = 0.9
    """Momentum, if the optimizer has it."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay."""
    filter_bias_and_bn: bool = False
    """Exclude biases and norms from weight decay, as timm's training script does."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one below; null: all learn alike."""
    opt_kwargs: dict[str, Any] = {}
    """Further arguments of the optimizer."""
    sched: Literal["step", "multistep", "cosine", "tanh", "poly", "wsd", "rsqrt", "constant"] = (
        "step"
    )
    """timm's name of the schedule."""
    sched_on_updates: bool = False
    """Step the schedule at every update instead of every epoch."""
    decay_epochs: PositiveFloat = 60
    """Epochs between decays (step)."""
    decay_milestones: list[PositiveInt] = [90, 180, 270]
    """Epochs of the decays (multistep). timm decays one epoch early: 41 acts after 40 epochs."""
    decay_rate: PositiveFloat = 0.1
    """Factor of each decay."""
    min_lr: NonNegativeFloat = 0.0
    """Lowest learning rate, for schedules that decay to one."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of linear warm-up."""
    warmup_lr: NonNegativeFloat = 1e-5
    """Learning rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Add the warm-up to the epochs instead of taking it out of them."""
    cooldown_epochs: NonNegativeInt = 0
    """Epochs at the lowest learning rate after the schedule."""
    smoothing: Share = 0.0
    """Label smoothing on every edge from the label."""
    clip_grad: PositiveFloat | None = None
    """Clip gradients to this value, node by node; null: no clipping."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """Clipping mode."""
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, BeforeValidator(_no_is_a_word)
    ] = None
    """Precision of the forward passes (losses are always float32); null: accelerate's setting."""
    model_ema: bool = False
    """Keep an exponential moving average of the target, and evaluate it, too: the short form of a
    node {ema: <target>}."""
    model_ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Share of the former average that each update keeps (model_ema)."""
    model_ema_warmup: bool = False
    """Raise the decay gradually to its value (model_ema)."""
    sync_bn: bool = False
    """Share BatchNorm's statistics of a batch among all processes, which need accelerators."""
    torchcompile: bool = False
    """Compile every node without taps with torch.compile."""
    cuda_graph: Literal["auto", "always", "never"] = "never"
    """Record an update once and replay it as one launch (CUDA); `auto`: where possible."""
    teacher_table: Literal["auto", "never"] = "auto"
    """Keep the logits of frozen nodes (in float16) for every view of every image, where that is
    possible: on a CPU, pipeline memory without mixup, no taps, room for it."""
    channels_last: bool | None = None
    """Use the channels-last memory format; null: only on a CPU, where it is faster."""

    def shortened(self, share: float) -> TrainConfig:
        """Return a whole training that is shorter: all that is counted in epochs shrinks alike.

        Numbers of epochs are rounded to the nearest, halves up. The decay of an exponential moving
        average, which is counted in updates, stays as it is.

        Args:
            share: The part of the epochs that is left, above 0, at most 1.
        """

        def scaled(epochs: int, least: int = 0) -> int:
            return max(least, int(epochs * share + 0.5))

        return self.model_copy(
            update={
                "epochs": scaled(self.epochs, 1),
                "warmup_epochs": scaled(self.warmup_epochs),
                "cooldown_epochs": scaled(self.cooldown_epochs),
                "decay_epochs": self.decay_epochs * share,
                # Milestone n decays after n - 1 epochs.
                "decay_milestones": [scaled(each - 1) + 1 for each in self.decay_milestones],
            }
        )
