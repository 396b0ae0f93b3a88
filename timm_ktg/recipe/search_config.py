"""The section `search`: which graphs to try, how, and what to do with the best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_serializer,
    model_serializer,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..graph.problems import Reduction
from ..graph.registry import with_arguments
from .data_config import DataConfig
from .node_config import (
    ModelName,
    Taps,
    from_word,
    gate_problems,
    loss_from_word,
    loss_problems,
)
from .search_problems import (
    search_problems,
    storage_problem,
    study_problem,
    weights_problem,
)
from .section import Section, checked, from_one, problem
from .tracking_config import TrackingConfig
from .train_config import PLATEAU, Rungs, TrainConfig

Objective = Literal["target", "ensemble", "ensemble-all"]
Kind = Literal["learns", "frozen", "ema"]


def _checked_storage(where: Any) -> Any:
    said = storage_problem(where)
    if said:
        raise PydanticCustomError("problem", "{message}", {"message": said})
    return where


def _seeds_problem(seeds: list[int]) -> str | None:
    if len(set(seeds)) == len(seeds):
        return None
    return f"should be seeds, each only once. Found {seeds}."


FinalSeeds = Annotated[list[NonNegativeInt], checked(_seeds_problem)]
StudyName = Annotated[str, checked(study_problem)]
GivenWeights = Annotated[str, checked(weights_problem)]


class GateConfig(Section):
    """A candidate gate; a bare word is a gate without arguments."""

    gate: str
    """Name of the gate."""
    gate_kwargs: dict[str, Any] = {}
    """Arguments of the gate."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems of the gate."""
        return gate_problems(data)

    @property
    def shown(self) -> str:
        """The gate in words, such as `confident(threshold=0.9)`."""
        return with_arguments(self.gate, self.gate_kwargs)

    @model_serializer(mode="wrap")
    def _to_word(self, handler: Any) -> Any:
        return handler(self) if self.gate_kwargs else self.gate


class LossConfig(Section):
    """A candidate loss with its temperature and weight; a bare word is a loss as it is."""

    loss: str
    """Name of the loss."""
    loss_kwargs: dict[str, Any] = {}
    """Arguments of the loss."""
    temperature: PositiveFloat = 1.0
    """Temperature T of both softmaxes; 1 on an edge from the label."""
    weight: NonNegativeFloat = 1.0
    """Factor of the edge's loss."""
    taps: Taps = None
    """Modules whose outputs the loss compares."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems of the loss."""
        return loss_problems(data)

    @property
    def shown(self) -> str:
        """The loss in words, such as `dkd(beta=2) T=4 weight=0.5`."""
        taps = json.dumps(self.taps) if isinstance(self.taps, list | dict) else self.taps
        words = {
            "T": f"{self.temperature:g}" if self.temperature != 1 else None,
            "weight": f"{self.weight:g}" if self.weight != 1 else None,
            "taps": taps,
        }
        given = [f"{key}={value}" for key, value in words.items() if value is not None]
        return " ".join([with_arguments(self.loss, self.loss_kwargs), *given])

    @model_serializer(mode="wrap")
    def _to_word(self, handler: Any) -> Any:
        return self.loss if self.shown == self.loss else handler(self)


Losses = list[Annotated[LossConfig, BeforeValidator(loss_from_word)]]
Gates = list[Annotated[GateConfig, BeforeValidator(from_word)]]
PAPERS_GATES = [GateConfig(gate=name) for name in ("through", "cutoff", "linear", "correct")]


class SearchConfig(Section):
    """Which graphs to try, how, and what to do with the best. The defaults are the paper's."""

    nodes: Annotated[list[PositiveInt], BeforeValidator(from_one)]
    """Numbers of nodes to try, including the target; one number or a list."""
    target_model: ModelName
    """timm's name of the target's model."""
    objective: Objective = "target"
    """What is judged: the target, the ensemble (mean of the logits) of all networks that learn, or
    of all networks, frozen ones too (ensemble-all). Not in the paper."""
    models: list[ModelName] = []
    """Candidate models for every auxiliary."""
    gates: Gates = PAPERS_GATES
    """Candidate gates for every edge. Gates of other packages must be named here to take part."""
    losses: Losses = []
    """Candidate losses for every edge between networks, each with its temperature and weight; none:
    kl_div for all. Not in the paper."""
    label_losses: Losses = []
    """Candidate losses for every edge from the label; none: cross_entropy for all. Not in the
    paper."""
    frozen: bool = False
    """Let the search choose for each auxiliary whether it is frozen: short for kinds [learns,
    frozen]. Not in the paper."""
    kinds: Annotated[list[Kind], BeforeValidator(from_one)] = []
    """Candidates for what every auxiliary is: learns; frozen; or ema, a slow copy of the target.
    None: learns, and frozen if `frozen` says so. Not in the paper."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of its former weights that a slow copy keeps at each update."""
    ema_warmup: bool = True
    """Let that share rise from 0, as with timm's --model-ema-warmup: with few updates, a copy that
    begins at 0.999 would stay near its first weights."""
    reduction: Reduction = "sum"
    """How a node's losses from networks add up: sum (Eq. 3), or mean (Zhang et al., DML)."""
    trials: PositiveInt = 1500
    """Total number of trials, over all workers and restarts; each worker may finish one more. With
    short_runs: the number of graphs to draw; promotions come on top."""
    budget: PositiveInt | None = None
    """Epochs that all trials together may train, if that is reached before `trials`; null: no
    limit. With short_runs, graphs are drawn as long as what is due to them fits in, too."""
    method: Literal["asha", "short_runs"] = "asha"
    """`asha`: train every graph on the whole schedule, and stop it at a rung unless it is among the
    best there (the paper). `short_runs`: train every graph on a short schedule of its own, and
    promote the best to longer ones; not in the paper."""
    rungs: Rungs = [0.1, 1.0]
    """Shares of train.epochs that graphs are trained for (short_runs). These did best among those
    replayed in recipes/cifar100-mini, with reduction_factor 2: more rungs, or a smaller share that
    goes up, did worse than random search there."""
    sampler: Literal["random", "tpe", "brute_force"] = "random"
    """How to draw graphs: at random (the paper), by Optuna's TPE, or every graph once."""
    seed: NonNegativeInt = 0
    """Seed of the draws; each trial also uses its number."""
    unique: bool = True
    """Replace repeated graphs (up to renaming) with new draws; the paper trains them again."""
    enqueue_controls: bool = False
    """Try the label-only, all-through and KD graphs (T=1) first."""
    pruner: Literal["asha", "none"] = "asha"
    """With method asha, `none` never stops a trial."""
    min_resource: PositiveInt = 1
    """Epoch of the first rung (asha); a later one suits gates that ramp up late."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """One in this many trials passes a rung, and the next rung has this many times the epochs
    (asha), or the share that `rungs` says (short_runs)."""
    weights: dict[str, Annotated[list[GivenWeights], BeforeValidator(from_one)]] = {}
    """Weights of frozen nodes by model: a file, `pretrained` (timm's own), or a list with one for
    each frozen node of the model in a graph; missing ones are trained on the labels, once per
    study."""
    study: StudyName | None = None
    """Name of the study; null: the recipe's name."""
    storage: Annotated[
        str | None,
        BeforeValidator(_checked_storage),
        Field(repr=False, json_schema_extra={"writeOnly": True}),
    ] = None
    """Where to keep the study; null: a journal in output-dir (one host); or postgresql://... ."""
    artifacts: str | None = None
    """Where workers share weights; null: a folder in output-dir; or a folder, or s3://bucket."""
    heartbeat_interval: PositiveInt = 60
    """Seconds between a worker's heartbeats in a database."""
    grace_period: PositiveInt = 300
    """Seconds without a heartbeat after which another worker gets the trial."""
    top_k: NonNegativeInt = 1
    """Number of best graphs to train again on all training images and to test."""
    final_seeds: FinalSeeds = [0, 1, 2, 3, 4]
    """Seeds of the final trainings of the best graphs and the controls."""

    @property
    def auxiliary_kinds(self) -> tuple[Kind, ...]:
        """The candidates for what every auxiliary is."""
        return tuple(self.kinds) or kinds_of(self.frozen)

    @property
    def top_rung(self) -> int:
        """The rung whose trials train to the end; with asha there is no other to begin on."""
        return len(self.rungs) - 1 if self.method == "short_runs" else 0

    @field_serializer("storage")
    def _without_url(self, storage: str | None) -> str | None:
        """Leave the URL of a database out of what is written down, because it holds a password."""
        return None if storage is not None and "://" in storage else storage

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems between fields."""
        yield from search_problems(
            data, {name: field.default for name, field in cls.model_fields.items()}
        )


def kinds_of(frozen: bool) -> tuple[Kind, ...]:
    """Return the candidates for what an auxiliary is that `search.frozen` stands for."""
    return ("learns", "frozen") if frozen else ("learns",)


def _tests(search: Any) -> bool:
    """Return whether the best graphs of an unchecked section `search` will be tested."""
    if not isinstance(search, Mapping):
        return False
    seeds, best = search.get("final_seeds", True), search.get("top_k", 1)
    return bool(seeds) and str(best) != "0"  # the command line gives numbers as strings


class SearchRecipe(Section):
    """All settings of a search."""

    search: SearchConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems with sections that a search shares with a training."""
        train, tracking = data.get("train") or {}, data.get("tracking") or {}
        if isinstance(train, Mapping) and train.get("sched") == PLATEAU:
            said = "should not be plateau: a search's last trainings have no validation images."
            yield problem(("train", "sched"), said)
        if isinstance(tracking, Mapping) and tracking.get("with"):
            yield problem(("tracking", "with"), "is for a training; a search supports wandb only.")
        images = data.get("data") or {}
        if not isinstance(images, Mapping):
            return
        if "test_split" in images and images["test_split"] is None and _tests(data.get("search")):
            yield problem(
                ("data", "test_split"),
                "should name a split, because the best graphs are tested on it. With "
                "search.top_k: 0, nothing is tested.",
            )
        if images.get("val_split"):
            return
        if str(images.get("holdout", 0)) == "0":  # the command line gives numbers as strings
            yield problem(
                ("data", "holdout"),
                "should be above 0, because a search needs validation images. Found 0.",
            )
