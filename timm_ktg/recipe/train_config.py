"""The section `train`: optimizer, schedule, precision. The defaults are the paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import timm.optim
import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic_core import InitErrorDetails

from ..errors import did_you_mean
from .section import Section, Share, changed, checked, is_on, problem, without_effect

LOOKAHEAD = "lookahead_"  # timm's prefix for an optimizer that Lookahead wraps


def _optimizer_problem(name: str) -> str | None:
    known = [str(each) for each in timm.optim.list_optimizers()]
    if name.removeprefix(LOOKAHEAD) == "adahessian":
        return "adahessian needs second derivatives, which updates here do not compute."
    if name.removeprefix(LOOKAHEAD) in known:
        return None
    near = did_you_mean(name, [*known, *(f"{LOOKAHEAD}{each}" for each in known)])
    return f"timm has no optimizer `{name}`.{near}"


def _device_problem(name: str) -> str | None:
    try:
        torch.device(name)
    except RuntimeError:
        return f"should be a device, such as cpu, cuda or cuda:1. Found {name[:100]}."
    return None


PLATEAU = "plateau"  # the schedule that looks at validation images


def _no_is_a_word(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


def _rungs_problem(rungs: list[float]) -> str | None:
    rise = all(low < high for low, high in pairwise([0, *rungs]))
    if rise and rungs[-1:] == [1]:
        return None
    return f"should be shares of train.epochs that rise from above 0 to 1. Found {rungs}."


Rungs = Annotated[list[float], checked(_rungs_problem)]


def _warmup_problem(train: Mapping[str, Any]) -> str | None:
    """Return why a warm-up never ends, if so; the values are unchecked, so they may be texts."""
    try:
        epochs, warmup = float(train["epochs"]), float(train["warmup_epochs"])
    except (TypeError, ValueError, OverflowError):
        return None  # pydantic reports it
    if is_on(train["warmup_prefix"]) or not 0 < epochs < warmup:
        return None
    most = f"should be at most train.epochs, {train['epochs']}"
    return f"{most}, unless train.warmup_prefix adds the two. Found {train['warmup_epochs']}."


# Fields that depend on another field: its name, the values with which they have an effect, and how
# that is said. Unchecked values from the command line are texts.
_ONLY_WITH: tuple[tuple[str, Callable[[Any], bool | None], str, tuple[str, ...]], ...] = (
    ("lr", lambda lr: lr is None, "null", ("lr_base", "lr_base_size", "lr_base_scale")),
    ("layer_decay", lambda decay: decay is not None, "given", ("layer_decay_min_scale",)),
    ("sched", ("step", "wsd", "rsqrt").__contains__, "step, wsd or rsqrt", ("decay_epochs",)),
    ("sched", ("multistep",).__contains__, "multistep", ("decay_milestones",)),
    (
        "sched",
        ("step", "multistep", "poly", PLATEAU).__contains__,
        "step, multistep, poly or plateau",
        ("decay_rate",),
    ),
    (
        "sched",
        ("cosine", "tanh", "poly", "wsd", "rsqrt", PLATEAU).__contains__,
        "cosine, tanh, poly, wsd, rsqrt or plateau",
        ("min_lr",),
    ),
    (
        "sched",
        ("cosine", "tanh", "poly").__contains__,
        "cosine, tanh or poly",
        ("lr_cycle_limit", "cooldown_epochs"),
    ),
    ("sched", ("cosine", "poly").__contains__, "cosine or poly", ("lr_k_decay",)),
    (
        "lr_cycle_limit",
        lambda limit: str(limit) != "1",
        "above 1",
        ("lr_cycle_mul", "lr_cycle_decay"),
    ),
    ("sched", (PLATEAU,).__contains__, PLATEAU, ("patience_epochs",)),
    ("lr_noise", lambda noise: noise is not None, "given", ("lr_noise_pct", "lr_noise_std")),
    (
        "warmup_epochs",
        lambda epochs: str(epochs) != "0",
        "above 0",
        ("warmup_lr", "warmup_prefix"),
    ),
    ("clip_grad", lambda value: value is not None, "given", ("clip_mode",)),
    ("model_ema", is_on, "true", ("model_ema_decay", "model_ema_warmup")),
)


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
    one. A search evaluates at its rungs only. Epochs in between that take less than a second have
    no line in the terminal."""
    log_interval: PositiveInt = 50
    """Updates from one reading of the running loss, for the bar, to the next; each reading waits
    for the device."""
    validation_batch_size: PositiveInt | None = None
    """Images per step of an evaluation, over all processes; null: batch_size."""
    grad_accum_steps: PositiveInt = 1
    """Number of parts to compute a batch in, to save memory."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, order and augmentation."""
    opt: Annotated[str, checked(_optimizer_problem)] = "sgd"
    """timm's name of the optimizer; `sgd` has Nesterov momentum, `momentum` does not."""
    lr: PositiveFloat | None = 0.1
    """Learning rate; null: lr_base, scaled to the batch."""
    lr_base: PositiveFloat = 0.1
    """Learning rate for a batch of lr_base_size, if `lr` is null."""
    lr_base_size: PositiveInt = 256
    """Images of the batch that lr_base is for."""
    lr_base_scale: Literal["linear", "sqrt"] | None = None
    """How the learning rate grows with the batch; null: sqrt for optimizers with ada or lamb in
    their names, such as adamw, and linear for others."""
    momentum: NonNegativeFloat = 0.9
    """Momentum, if the optimizer has it."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay."""
    filter_bias_and_bn: bool = False
    """Exclude biases and norms from weight decay, as timm's training script does."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one below; null: all learn alike."""
    layer_decay_min_scale: Share = 0.0
    """Least factor of a layer's learning rate (layer_decay)."""
    opt_kwargs: dict[str, Any] = {}
    """Further arguments of the optimizer."""
    sched: Literal[
        "step",
        "multistep",
        "cosine",
        "tanh",
        "poly",
        "wsd",
        "rsqrt",
        "constant",
        "plateau",
    ] = "step"
    """timm's name of the schedule; `plateau` looks at the target's validation top-1."""
    sched_on_updates: bool = False
    """Step the schedule at every update instead of every epoch."""
    decay_epochs: PositiveFloat = 60
    """Epochs between decays (step), or of the decay at the end; below 1, a share (wsd, rsqrt)."""
    decay_milestones: list[PositiveInt] = [90, 180, 270]
    """Epochs of the decays (multistep). timm decays one epoch early: 41 acts after 40 epochs."""
    decay_rate: PositiveFloat = 0.1
    """Factor of each decay (step, multistep, plateau); the power (poly)."""
    patience_epochs: NonNegativeInt = 10
    """Epochs without a better validation before a decay (plateau)."""
    lr_cycle_limit: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of cycles, each as long as `epochs` (cosine, tanh, poly)."""
    lr_cycle_mul: PositiveFloat = 1.0
    """Factor of each cycle's length (lr_cycle_limit)."""
    lr_cycle_decay: NonNegativeFloat = 0.5
    """Factor of each cycle's learning rate (lr_cycle_limit)."""
    lr_k_decay: PositiveFloat = 1.0
    """Above 1, the rate stays high for longer (cosine, poly)."""
    lr_noise: Annotated[list[Share], Field(min_length=1, max_length=2)] | None = None
    """Shares of `epochs` where noise on the learning rate begins and ends; null: no noise."""
    lr_noise_pct: PositiveFloat = 0.67
    """Largest share of the learning rate that noise adds or takes (lr_noise)."""
    lr_noise_std: PositiveFloat = 1.0
    """Standard deviation of the noise, likewise (lr_noise)."""
    min_lr: NonNegativeFloat = 0.0
    """Lowest learning rate, for schedules that decay to one."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of linear warm-up, at most `epochs` unless they add to them (warmup_prefix)."""
    warmup_lr: NonNegativeFloat = 1e-5
    """Learning rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Add the warm-up to the epochs instead of taking it out of them."""
    cooldown_epochs: NonNegativeInt = 0
    """Epochs at the lowest learning rate after the schedule (cosine, tanh, poly)."""
    smoothing: Share = 0.0
    """Label smoothing on edges from the label that name no loss; mixed labels have it on all."""
    head_init_scale: NonNegativeFloat | None = None
    """Factor of the initial classifier of every node that learns; null: as it is."""
    head_init_bias: float | None = None
    """Initial bias of that classifier; null: as it is."""
    clip_grad: PositiveFloat | None = None
    """Clip gradients to this value, node by node; null: no clipping."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """Clipping mode."""
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, BeforeValidator(_no_is_a_word)
    ] = None
    """Precision of the forward passes (losses are always float32); null: accelerate's setting, and
    where that is `no`, bf16 on a CPU where it is faster (amx_bf16, or AMD's avx512_bf16)."""
    model_ema: bool = False
    """Keep an exponential moving average of the target, and evaluate it, too: the short form of a
    node {ema: <target>}."""
    model_ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Share of the former average that each update keeps (model_ema)."""
    model_ema_warmup: bool = False
    """Raise the decay gradually to its value (model_ema)."""
    grad_checkpointing: bool = False
    """Compute activations of learning nodes twice instead of keeping them, to save memory."""
    device: Annotated[str, checked(_device_problem)] | None = None
    """Device, such as cpu, cuda or cuda:1; null: accelerate's choice."""
    sync_bn: bool = False
    """Share BatchNorm's statistics of a batch among all processes, which need accelerators."""
    torchcompile: bool = False
    """Compile every node without taps with torch.compile."""
    cuda_graph: Literal["auto", "always", "never"] = "auto"
    """Record an update once and replay it as one launch (CUDA); `auto`: where that is possible,
    with images in memory, and losses, gates and models of this package and of timm."""
    deterministic: bool = False
    """Use torch's deterministic algorithms, so that a GPU computes the same bits again, as a CPU
    does anyway."""
    teacher_table: Literal["auto", "never"] = "auto"
    """Keep the logits of frozen nodes (in float16) for every view of every image, where that is
    possible: on a CPU, pipeline memory without mixup, no taps, room for it."""
    channels_last: bool | None = None
    """Use the channels-last memory format; null: on a CPU and with CUDA, where it is faster."""

    @property
    def learning_rate(self) -> float:
        """The learning rate: `lr`, or lr_base scaled to the batch as timm's script does it."""
        if self.lr is not None:
            return self.lr
        root = any(name in self.opt for name in ("ada", "lamb"))
        scale = self.lr_base_scale or ("sqrt" if root else "linear")
        return self.lr_base * (self.batch_size / self.lr_base_size) ** (
            0.5 if scale == "sqrt" else 1
        )

    @property
    def evaluation_batch_size(self) -> int:
        """Images per step of an evaluation, over all processes."""
        return self.validation_batch_size or self.batch_size

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the fields that have no effect."""
        for condition, holds, said, fields in _ONLY_WITH:
            if not holds(data.get(condition, cls.model_fields[condition].default)):
                yield from without_effect(cls, data, fields, f"train.{condition} is {said}")
        if data.get("sched") == PLATEAU:
            for name in changed(cls, data, ("sched_on_updates", "lr_noise")):
                yield problem((name,), "should be left out, because train.sched is plateau.")
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        endless = _warmup_problem({**defaults, **data})
        if endless:
            yield problem(("warmup_epochs",), endless)

    def shortened(self, share: float) -> TrainConfig:
        """Return a whole training that is shorter: all that is counted in epochs shrinks alike.

        Numbers of epochs are rounded to the nearest, halves up. The decay of an exponential moving
        average, which is counted in updates, stays as it is.

        Args:
            share: The part of the epochs that is left, above 0, at most 1.
        """

        def scaled(epochs: int, least: int = 0) -> int:
            return max(least, int(epochs * share + 0.5))

        decay = self.decay_epochs * share
        if self.sched in ("wsd", "rsqrt"):  # below 1 it is a share already, and must not become one
            decay = self.decay_epochs if self.decay_epochs < 1 else max(1.0, decay)
        short: dict[str, Any] = {
            "epochs": scaled(self.epochs, 1),
            "warmup_epochs": scaled(self.warmup_epochs),
            "cooldown_epochs": scaled(self.cooldown_epochs),
            "patience_epochs": scaled(self.patience_epochs),
            "decay_epochs": decay,
            # Milestone n decays after n - 1 epochs.
            "decay_milestones": [scaled(each - 1) + 1 for each in self.decay_milestones],
        }
        for found in self.problems({**self.model_dump(), **short}):
            # It belongs to another schedule, or to a warm-up that has become too short.
            name = str(found["loc"][0])
            short[name] = type(self).model_fields[name].default
        return self.model_copy(update=short)
