"""The results of a run, and of several seeds of one recipe, as they are kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .sample import Sample


@dataclass(frozen=True)
class Accuracy:
    """A node's accuracy.

    Args:
        top1: Top-1 in percent.
        top5: Top-5 in percent.
    """

    top1: float
    top5: float


@dataclass(frozen=True)
class Preparation:
    """How evaluation makes an image fit, in the words of timm's `create_transform`.

    Args:
        input_size: Channels, height and width of the result.
        interpolation: How the image is resized.
        crop_pct: Share of the resized image's sides that is kept, in 0..1.
        crop_mode: `center` keeps the aspect ratio and cuts off the rest; `squash` does not keep it.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str


@dataclass(frozen=True)
class DataFacts:
    """What the images were.

    Args:
        fingerprint: Hash of the data set's splits.
        mean: Mean of each channel that batches are normalized with.
        std: Standard deviation of each channel, likewise.
        class_names: [C] names; empty in the results of earlier versions.
        preparation: How evaluation prepared an image; None in the results of earlier versions.
        split_seed: What decided which training images the accuracies were measured on; None: they
            were not held out of those, or an earlier version did not write it down.
    """

    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    preparation: Preparation | None = None
    split_seed: int | None = None


@dataclass(frozen=True)
class Best:
    """The best epoch of a run.

    Args:
        metric: What of the target decides it, on the validation images: `top1` or `loss`.
        epoch: The epoch, from 1.
        value: The target's, in percent if it is top-1.
    """

    metric: str
    epoch: int
    value: float


@dataclass(frozen=True)
class Cost:
    """What a graph costs. A multiplication and an addition are two floating-point operations.

    Args:
        training_flops: Operations of a training step, for one image: forward and backward of nodes
            that learn and of losses, forward of other networks unless they are looked up in a
            table. The optimizer is left out, as are losses of logits alone, and what only goes over
            a tensor once, such as activations.
        inference_flops: Operations of the target for one image; of an ensemble, those of all its
            members.
        parameters: Parameters of the target; of an ensemble, likewise.
    """

    training_flops: int
    inference_flops: int
    parameters: int


@dataclass(frozen=True)
class RunResult:
    """The result of a run: summary.json, key for key.

    Args:
        target: Name of the target.
        split: Split that the accuracies were measured on: `test`, `val` or `train`.
        nodes: Accuracy by node.
        seed: Seed of the run.
        epochs: Epochs trained.
        data: What the images were.
        processes: Processes that trained together.
        device: Device that they trained on.
        python: Version of Python.
        packages: Versions of the packages that decide the result.
        training_seconds: Seconds of training.
        wall_seconds: Seconds from start to end, of the last process if the run was resumed.
        images: How many images the accuracies were measured on; None: an earlier version did not
            write it down.
        cost: What the graph costs; None in the results of earlier versions.
        best: The best epoch, which `best/` keeps; None: the recipe did not ask for it.
        device_name: Name of the hardware; None: not known, or an earlier version wrote the file.
    """

    target: str
    split: str
    nodes: Mapping[str, Accuracy]
    seed: int
    epochs: int
    data: DataFacts
    processes: int
    device: str
    python: str
    packages: Mapping[str, str]
    training_seconds: float
    wall_seconds: float
    images: int | None = None
    cost: Cost | None = None
    best: Best | None = None
    device_name: str | None = None

    @property
    def target_accuracy(self) -> Accuracy:
        """The target's accuracy."""
        return self.nodes[self.target]

    def as_json(self) -> dict[str, Any]:
        """Return the result as summary.json holds it."""
        return asdict(self, dict_factory=_with_lists)

    @classmethod
    def from_json(cls, values: Any) -> RunResult:
        """Return the result that summary.json holds.

        Args:
            values: Content of the file, parsed.

        Raises:
            ValueError: Something is missing or of another type; says what and where.
        """
        try:
            result = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise ValueError("; ".join(map(_problem, error.errors()))) from None
        if result.target not in result.nodes:
            nodes = ", ".join(result.nodes)
            raise ValueError(f"target: should be one of the nodes {nodes}. Found {result.target!r}")
        return result


@dataclass(frozen=True)
class AccuracySample:
    """A node's accuracy with several seeds.

    Args:
        top1: Top-1 in percent.
        top5: Top-5 in percent.
    """

    top1: Sample
    top5: Sample


@dataclass(frozen=True)
class SeedsResult:
    """The result of several seeds of one recipe: seeds.json, key for key.

    Args:
        target: Name of the target.
        split: Split that the accuracies were measured on.
        epochs: Epochs of each run.
        seeds: The seeds.
        nodes: Accuracies by node.
    """

    target: str
    split: str
    epochs: int
    seeds: tuple[int, ...]
    nodes: Mapping[str, AccuracySample]

    @classmethod
    def of(cls, seeds: Sequence[int], runs: Sequence[RunResult]) -> SeedsResult:
        """Return the results of all seeds as one.

        Args:
            seeds: The seeds, at least one.
            runs: The result of each.
        """
        first = runs[0]
        nodes = {}
        for name in first.nodes:
            found = [run.nodes[name] for run in runs]
            nodes[name] = AccuracySample(
                Sample(tuple(each.top1 for each in found)),
                Sample(tuple(each.top5 for each in found)),
            )
        return cls(first.target, first.split, first.epochs, tuple(seeds), nodes)

    def as_json(self) -> dict[str, Any]:
        """Return the result as seeds.json holds it."""
        nodes = {
            name: {"top1": each.top1.as_json(), "top5": each.top5.as_json()}
            for name, each in self.nodes.items()
        }
        return {
            "target": self.target,
            "split": self.split,
            "epochs": self.epochs,
            "seeds": list(self.seeds),
            "nodes": nodes,
        }


def _with_lists(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields as JSON has them, where there are no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}


def _problem(details: Any) -> str:
    where = ".".join(map(str, details["loc"])) or "the whole"
    if details["type"] == "missing":
        return f"{where}: should be given"
    said = details["msg"].removeprefix("Input ")
    return f"{where}: {said}. Found {details['input']!r}"
