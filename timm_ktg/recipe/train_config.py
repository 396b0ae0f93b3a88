"""The section `train`: optimizer, schedule, precision. The defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import timm.optim
from pydantic import BeforeValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..errors import did_you_mean
from .section import Section, Share, checked


def _optimizer_problem(name: str) -> str | None:
    known = [str(each) for each in timm.optim.list_optimizers()]
    if name in known:
        return None
    return f"timm knows no optimizer `{name}`.{did_you_mean(name, known)}"


def _no_is_a_word(value: Any) -> Any:
    return "no" if value is False else value  # YAML takes a bare `no` for false


class TrainConfig(Section):
    """Optimizer, schedule, precision; every name that timm's training script has means the same."""

    epochs: PositiveInt = 200
    """Epochs; a schedule with warmup_prefix or cooldown_epochs adds its own."""
    batch_size: PositiveInt = 64
    """Images an optimizer update, over all processes and accumulation steps together."""
    grad_accum_steps: PositiveInt = 1
    """Parts in which a batch is computed, to save memory."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, order and augmentation."""
    opt: Annotated[str, checked(_optimizer_problem)] = "sgd"
    """timm's name of the optimizer; `sgd` is with Nesterov momentum, `momentum` without."""
    lr: PositiveFloat = 0.1
    """Learning rate."""
    momentum: NonNegativeFloat = 0.9
    """Momentum, where the optimizer has one."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay."""
    filter_bias_and_bn: bool = False
    """Leave biases and norms out of weight decay, as timm's own script does."""
    opt_kwargs: dict[str, Any] = {}
    """Further arguments of the optimizer."""
    sched: Literal["step", "multistep", "cosine", "tanh", "poly", "wsd", "rsqrt", "constant"] = (
        "step"
    )
    """timm's name of the schedule."""
    sched_on_updates: bool = False
    """Step the schedule at every update rather than at every epoch."""
    decay_epochs: PositiveFloat = 60
    """Epochs between decays (step)."""
    decay_milestones: list[PositiveInt] = [90, 180, 270]
    """Epochs of the decays (multistep). timm decays one epoch early: 41 acts after 40 epochs."""
    decay_rate: PositiveFloat = 0.1
    """Factor of a decay."""
    min_lr: NonNegativeFloat = 0.0
    """Lowest learning rate of schedules that fall to one."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of linear warm-up."""
    warmup_lr: NonNegativeFloat = 1e-5
    """Learning rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Add the warm-up to the epochs instead of taking it out of them."""
    cooldown_epochs: NonNegativeInt = 0
    """Epochs at the lowest learning rate after the schedule."""
    smoothing: Share = 0.0
    """Label smoothing, on every edge from the label."""
    clip_grad: PositiveFloat | None = None
    """Clip gradients to this, node by node; null: no clipping."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """How to clip."""
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, BeforeValidator(_no_is_a_word)
    ] = None
    """Precision of the forward passes, losses are always float32; null: accelerate's own choice."""
    torchcompile: bool = False
    """Compile every node that has no taps with torch.compile."""
    cuda_graph: Literal["auto", "always", "never"] = "never"
    """Record an update once and replay it as one launch (CUDA): where it can be, or always."""
    channels_last: bool | None = None
    """Use the channels-last memory format; null: on a CPU, where it is faster."""
