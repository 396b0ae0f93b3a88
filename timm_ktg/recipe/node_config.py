"""The nodes of the section `graph`: networks with their edges, ensembles, moving averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import timm
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..errors import did_you_mean, found, one_line
from ..graph.edge import EdgeTaps, default_loss
from ..graph.ensemble import Combine, weights_problem
from ..graph.gates import create_gate
from ..graph.losses import create_loss, ignores_taps
from ..graph.topology import EMA, ENSEMBLE, NETWORK, Traits, tags_of
from .section import Section, checked, problem


def _model_problem(name: str) -> str | None:
    if name.startswith(("hf-hub:", "local-dir:")) or timm.is_model(name):
        return None
    near = did_you_mean(name, timm.list_models())
    return f"timm has no model `{name}`.{near} timm.list_models() lists all models."


def file_problem(path: str) -> str | None:
    """Return why a path is no file of weights; None if it is one."""
    if Path(path).is_file():
        return None
    return f"should be a file of weights. Found nothing at `{path}`."


_BOOL = TypeAdapter(bool)


def is_on(value: Any) -> bool:
    """Return whether an unchecked value means true, as `yes` on a command line does."""
    try:
        return _BOOL.validate_python(value)
    except ValidationError:
        return value is not None  # the field's own check reports what else it is


def from_word(value: Any) -> Any:
    """Expand a gate written as a bare word into the section that it stands for."""
    return {"gate": value} if isinstance(value, str) else value


def loss_from_word(value: Any) -> Any:
    """Expand a loss written as a bare word, likewise."""
    return {"loss": value} if isinstance(value, str) else value


def spread(learns_from: Any) -> Any:
    """Give each edge its own key where a source has a list of edges.

    `{teacher: [{loss: a}, {loss: b}]}` becomes `{teacher/a: {loss: a}, teacher/b: {loss: b}}`.

    Raises:
        PydanticCustomError: It is no mapping, or two edges would have the same key.
    """
    if not isinstance(learns_from, Mapping):
        said = "should be a mapping of sources to gates, such as {label: through}."
        said = f"{said} Found {found(learns_from)}."
        raise PydanticCustomError("problem", "{message}", {"message": said})
    result: dict[Any, Any] = {}
    for source, edges in learns_from.items():
        if not isinstance(edges, list):
            result[source] = edges
            continue
        losses = [_loss_of(edge, str(source)) for edge in edges]
        tags = tags_of([(str(source), "")] * len(edges), losses)
        for tag, edge in zip(tags, edges, strict=True):
            key = f"{source}/{tag}" if tag else source
            if key in result:
                said = f"two edges are called `{key}`; give them different keys, such as"
                said = f"{said} {source}/first and {source}/second."
                raise PydanticCustomError("problem", "{message}", {"message": said})
            result[key] = edge
    return result


def _loss_of(edge: Any, source: str) -> str:
    loss = edge.get("loss") if isinstance(edge, Mapping) else None
    return str(loss or default_loss(source))


def gate_problems(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Yield the problems of an unchecked section's gate and its arguments."""
    gate, arguments = data.get("gate", "through"), data.get("gate_kwargs", {})
    if said := _problem_of(create_gate, gate, arguments):
        yield problem(("gate",), said)


def loss_problems(data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    """Yield the problems of an unchecked section's loss and its arguments."""
    loss, arguments = data.get("loss"), data.get("loss_kwargs", {})
    if loss is None and arguments:
        yield problem(("loss_kwargs",), "should come with `loss`, the name of the loss.")
    elif said := _problem_of(create_loss, loss, arguments):
        yield problem(("loss",), said)
    elif (
        data.get("taps") and _taps_problem(data["taps"]) is None and _reads_logits(loss, arguments)
    ):
        said = "should come with a loss that compares the outputs of modules, such as attention."
        yield problem(("taps",), said)


def _reads_logits(loss: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a loss reads logits alone, as those do that edges have by default (None)."""
    return loss is None or (isinstance(loss, str) and ignores_taps(create_loss(loss, **arguments)))


def _problem_of(create: Callable[..., object], name: Any, arguments: Any) -> str | None:
    """Return why a gate or a loss cannot be created, unless pydantic reports it."""
    if not (isinstance(name, str) and isinstance(arguments, Mapping)):
        return None
    if not all(isinstance(key, str) for key in arguments):
        return None
    try:
        create(name, **arguments)
    except Exception as error:  # third-party code can raise anything
        return one_line(error)
    return None


def _taps_problem(taps: Any) -> str | None:
    try:
        EdgeTaps.of(taps or ())
    except ValueError as error:
        return str(error).removeprefix("taps ")
    return None


ModelName = Annotated[str, checked(_model_problem)]
Taps = Annotated[str | list[str] | dict[str, Any] | None, checked(_taps_problem)]
WeightsFile = Annotated[str, checked(file_problem)]


class EdgeConfig(Section):
    """How a node learns from one source; a bare word names the gate."""

    gate: str = "through"
    """Gate that decides which samples' losses pass."""
    gate_kwargs: dict[str, Any] = {}
    """Arguments of the gate."""
    loss: str | None = None
    """Loss of the edge; null: cross_entropy from the label, kl_div from a network."""
    loss_kwargs: dict[str, Any] = {}
    """Arguments of the loss; need `loss`."""
    temperature: PositiveFloat = 1.0
    """Temperature T of both softmaxes; 1 on an edge from the label."""
    weight: NonNegativeFloat = 1.0
    """Factor of the edge's loss."""
    taps: Taps = None
    """Modules whose outputs the loss compares, such as `layer3`, a list, or
    {source: layer3, destination: blocks.5}."""
    head: str | None = None
    """Head of the destination that learns, if its model has several; null: the first."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems of the gate and the loss."""
        yield from gate_problems(data)
        yield from loss_problems(data)

    @model_serializer(mode="wrap")
    def _to_word(self, handler: Any) -> Any:
        """Write an edge that has only a gate as a bare word."""
        fields = type(self).model_fields.items()
        others = [name for name, field in fields if getattr(self, name) != field.default]
        return self.gate if set(others) <= {"gate"} else handler(self)


class NodeConfig(Section):
    """A timm model and the sources it learns from; without sources it is frozen."""

    model: ModelName
    """timm's name of the model, or `hf-hub:...`, `local-dir:...`."""
    model_kwargs: dict[str, Any] = {}
    """Arguments for timm.create_model."""
    pretrained: bool = False
    """Start from timm's pretrained weights."""
    checkpoint_path: WeightsFile | None = None
    """Start from the weights in this file, such as a run's nodes/<name>.safetensors."""
    train_first: bool = False
    """Unless checkpoint_path gives its weights, train it on the labels alone before the run begins,
    with the run's data and settings, from a seed of its own; then it is frozen."""
    seed: int | None = None
    """Seed of the initial weights; null: derived from train.seed and the node's name."""
    taps: list[str] = []
    """Names of the submodules whose outputs become the node's features."""
    img_size: PositiveInt | None = None
    """Height and width that the images are resized to for this node; null: as they are."""
    learns_from: Annotated[
        dict[str, Annotated[EdgeConfig, BeforeValidator(from_word)]], BeforeValidator(spread)
    ] = {}
    """Sources by name (`label` or a node), each with its gate. Unlisted sources are cut off.
    For several edges from one source, give a list, or keys such as `teacher/attention`."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield why a node cannot be trained first."""
        if is_on(data.get("train_first")) and data.get("learns_from"):
            said = "should be off for a node that learns from something; it would be frozen."
            yield problem(("train_first",), said)

    @property
    def is_trained_first(self) -> bool:
        """Whether the run trains it before it begins."""
        return self.train_first and self.checkpoint_path is None

    @property
    def has_weights(self) -> bool:
        """Whether the node starts from trained weights."""
        return self.pretrained or self.checkpoint_path is not None or self.train_first

    @property
    def title(self) -> str:
        """What the node is, in a word or two."""
        return self.model

    def traits(self, name: str) -> Traits:
        """Return the node's traits for the topology."""
        return Traits(name, self.has_weights)


class EnsembleConfig(Section):
    """An ensemble of other nodes: it learns from nothing, but can teach, and can be the target."""

    ensemble: list[str]
    """Names of its members."""
    combine: Combine = "logits"
    """Average the logits, or the probabilities."""
    weights: list[float] | None = None
    """A weight for each member; null: all equal."""

    @property
    def learns_from(self) -> dict[str, EdgeConfig]:
        """Nothing."""
        return {}

    @property
    def title(self) -> str:
        """What the node is, in a word or two."""
        members, combine = self.ensemble, "" if self.combine == "logits" else f" ({self.combine})"
        if len({*(self.weights or ())}) > 1:
            assert self.weights is not None
            shares = (100 * weight / math.fsum(self.weights) for weight in self.weights)
            members = [f"{s:.3g} % {name}" for s, name in zip(shares, members, strict=True)]
        return f"ensemble of {', '.join(members)}{combine}"

    def traits(self, name: str) -> Traits:
        """Return the node's traits for the topology."""
        return Traits(name, needs=tuple(self.ensemble), kind=ENSEMBLE)

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems of the weights."""
        members, weights = data.get("ensemble"), data.get("weights")
        try:
            said = weights_problem(members or [], weights and [float(each) for each in weights])
        except (TypeError, ValueError):
            return  # pydantic reports it
        if said:
            yield problem(("weights",), said)


class EmaConfig(Section):
    """A slow copy of a network that learns: it can teach (mean teacher), and can be the target."""

    ema: str
    """Name of the network that it follows."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Share of the former average that each update keeps."""
    warmup: bool = False
    """Raise the decay gradually to its value, as timm's --model-ema-warmup does."""

    @property
    def learns_from(self) -> dict[str, EdgeConfig]:
        """Nothing."""
        return {}

    @property
    def title(self) -> str:
        """What the node is, in a word or two."""
        return f"slow copy of {self.ema}, decay {self.decay:g}"

    def traits(self, name: str) -> Traits:
        """Return the node's traits for the topology."""
        return Traits(name, needs=(self.ema,), kind=EMA)


# The kinds of nodes by tag; a tag is in the location of an error, where it is left out.
KINDS: dict[str, type[NodeConfig] | type[EnsembleConfig] | type[EmaConfig]] = {
    f"[{kind}]": config
    for kind, config in ((NETWORK, NodeConfig), (ENSEMBLE, EnsembleConfig), (EMA, EmaConfig))
}


def kind_of(node: Any) -> str:
    """Return the tag of a node, checked or not."""
    for tag, config in KINDS.items():
        if isinstance(node, config):
            return tag
    made = (ENSEMBLE, EMA)
    kind = next((key for key in made if isinstance(node, Mapping) and key in node), NETWORK)
    return f"[{kind}]"


AnyNode = Annotated[
    Annotated[NodeConfig, Tag(f"[{NETWORK}]")]
    | Annotated[EnsembleConfig, Tag(f"[{ENSEMBLE}]")]
    | Annotated[EmaConfig, Tag(f"[{EMA}]")],
    Discriminator(kind_of),
]
