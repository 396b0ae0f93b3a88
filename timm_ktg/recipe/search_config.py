"""The section `search`: which graphs are tried, how, and what becomes of the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_serializer
from pydantic_core import InitErrorDetails

from ..graph.gates import create_gate
from ..graph.graph import Reduction
from ..graph.registry import shown
from .data_config import DataConfig
from .graph_config import ModelName, WeightsFile, from_word, gate_problems
from .section import Section, problem
from .tracking_config import TrackingConfig
from .train_config import TrainConfig


def _from_one(value: Any) -> Any:
    return [value] if isinstance(value, int | str) else value


class GateConfig(Section):
    """A candidate gate; a bare word is one without arguments."""

    gate: str
    """Name of the gate."""
    gate_kwargs: dict[str, Any] = {}
    """Arguments of the gate."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield what is wrong with the gate."""
        return gate_problems(data)

    @property
    def shown(self) -> str:
        """The gate and its arguments, such as `confident(threshold=0.9)`."""
        return shown(create_gate(self.gate, **self.gate_kwargs))

    @model_serializer(mode="wrap")
    def _to_word(self, handler: Any) -> Any:
        return handler(self) if self.gate_kwargs else self.gate


Gates = list[Annotated[GateConfig, BeforeValidator(from_word)]]
PAPERS_GATES = [GateConfig(gate=name) for name in ("through", "cutoff", "linear", "correct")]


class SearchConfig(Section):
    """Which graphs are tried, how, and what becomes of the best. The defaults are the paper's."""

    nodes: Annotated[list[PositiveInt], BeforeValidator(_from_one)]
    """Numbers of nodes to try, the target included; one number, or several."""
    target_model: ModelName
    """timm's name of the target's model."""
    models: list[ModelName] = []
    """Candidates for every auxiliary's model."""
    gates: Gates = PAPERS_GATES
    """Candidates for every edge's gate. Gates of other packages take part only when named here."""
    frozen: bool = False
    """Make `frozen` a choice of its own for every auxiliary; the paper has none."""
    reduction: Reduction = "sum"
    """How a node's losses from networks add up: sum (Eq. 3), or mean (Zhang et al., DML)."""
    trials: PositiveInt = 1500
    """Trials in all, over all workers and starts; each worker may end one more."""
    sampler: Literal["random", "tpe", "brute_force"] = "random"
    """How graphs are drawn: at random (the paper), by Optuna's TPE, or each one once."""
    seed: NonNegativeInt = 0
    """Seed of what is drawn; a trial's number decides the rest."""
    unique: bool = True
    """Draw again what was drawn before, equal auxiliaries renamed; the paper trains it again."""
    enqueue_controls: bool = False
    """Try label-only, all-through and KD graphs (T=1) first."""
    pruner: Literal["asha", "none"] = "asha"
    """Stop a trial at a rung unless it is among the best there (ASHA), or never."""
    min_resource: PositiveInt = 1
    """Epoch of the first rung; a later one suits gates that ramp up late."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """One of this many trials passes a rung, and the next rung has this many times its epochs."""
    weights: dict[str, WeightsFile] = {}
    """Weights of frozen nodes by model; those not given are trained on the labels, once a study."""
    study: str | None = None
    """Name of the study; null: the recipe's."""
    storage: str | None = None
    """Where the study is kept: null: a journal in output-dir (one host); or postgresql://... ."""
    artifacts: str | None = None
    """Where workers share weights: null: a folder in output-dir; a folder; or s3://bucket."""
    heartbeat_interval: PositiveInt = 60
    """Seconds between a worker's signs of life in a database."""
    grace_period: PositiveInt = 300
    """Seconds without one after which a worker's trial is given to another."""
    top_k: NonNegativeInt = 1
    """Best graphs to train again on all training images, and test."""
    final_seeds: list[NonNegativeInt] = [0, 1, 2, 3, 4]
    """Seeds of the final trainings, of the best graphs and of the controls beside them."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield what is wrong between the fields."""
        nodes = _from_one(data.get("nodes", 1))
        if nodes == []:
            yield problem(("nodes",), "should be one number of nodes or more. Found none.")
        if nodes != [1] and not data.get("models"):
            yield problem(("models",), "should name a candidate for the auxiliaries. Found none.")
        interval = data.get("heartbeat_interval", cls.model_fields["heartbeat_interval"].default)
        grace = data.get("grace_period", cls.model_fields["grace_period"].default)
        try:
            if float(grace) <= float(interval):
                said = f"should be above heartbeat_interval, {interval}. Found {grace}."
                yield problem(("grace_period",), said)
        except (TypeError, ValueError):
            pass  # pydantic's to report


class SearchRecipe(Section):
    """Everything that decides how a search goes."""

    search: SearchConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield what a search cannot do without."""
        tracking = data.get("tracking") or {}
        if isinstance(tracking, Mapping) and tracking.get("with"):
            yield problem(("tracking", "with"), "belongs to a training; a search has wandb alone.")
        images = data.get("data") or {}
        if not isinstance(images, Mapping) or images.get("val_split"):
            return
        if str(images.get("holdout", 0)) == "0":  # the command line gives numbers as texts
            yield problem(
                ("data", "holdout"),
                "should be above 0, for a search chooses by validation images. Found 0.",
            )
