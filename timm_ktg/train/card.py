"""The card of what a run trained: nodes/README.md, in the form that the Hugging Face hub shows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from timm.models import model_entrypoint

from ..draw.picture import mermaid_of
from ..draw.reading import results_of
from ..recipe.recipe import Recipe
from ..records.files import write_whole
from ..records.reader import read_result
from ..records.result import Cost, RunResult
from ..records.run_directory import RunDirectory

_CLASSES = 20  # that the card names
_HEAD = """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, knowledge-distillation]
---
"""


def write_card(recipe: Recipe, directory: RunDirectory, result: RunResult) -> None:
    """Write the card of a finished run.

    Args:
        recipe: The recipe.
        directory: The directory of the run.
        result: Its result.

    Raises:
        StorageError: The card cannot be written.
        RecipeError: The result of a teacher that was trained first cannot be read.
    """
    text = "\n".join(_lines(recipe, directory, result))
    write_whole(directory.card, f"{_HEAD}{text}\n")


def _lines(recipe: Recipe, directory: RunDirectory, result: RunResult) -> Iterator[str]:
    target, data, train = recipe.graph.nodes[result.target], recipe.data, recipe.train
    yield f"# {result.target}: {target.title}\n"
    yield (
        f"Classifies images into {len(result.data.class_names)} classes. A knowledge transfer "
        f"graph trained it on `{data.dataset}`: {train.epochs} epochs, batch size "
        f"{train.batch_size}, {train.opt}, learning rate {train.learning_rate:g}, "
        f"schedule {train.sched}. "
        "All settings are in the run's `recipe.yaml`, which repeats the run.\n"
    )
    yield from _figures(recipe, result)
    if result.cost:
        yield from _costs(directory, result.target, result.cost)
    yield "\n## Graph\n"
    yield f"```mermaid\n{mermaid_of(recipe.graph, results_of(directory.path))}```"
    yield "\n## Use\n"
    yield from _usage(directory, result)
    yield "\n## Classes\n"
    yield _classes(result.data.class_names)
    yield "\n## License\n"
    yield "Not chosen yet. It depends on the images, and on the weights that nodes started from."


def _figures(recipe: Recipe, result: RunResult) -> Iterator[str]:
    packages = (f"{name} {result.packages[name]}" for name in ("timm_ktg", "torch", "timm"))
    where = "training images" if result.split == "train" else f"{result.split} images"
    yield f"## Accuracy on the {where}, after {result.epochs} epochs\n"
    yield "| node | | top-1 % | top-5 % |\n|---|---|---:|---:|"
    for name, accuracy in result.nodes.items():
        node = recipe.graph.nodes.get(name)
        title = node.title if node else "mean of their logits"
        yield f"| {name} | {title} | {accuracy.top1:.2f} | {accuracy.top5:.2f} |"
    device = result.device_name or result.device
    yield f"\nOne run, seed {result.seed}, on {device}; {', '.join(packages)}."
    if best := result.best:
        yield (
            f"\nEpoch {best.epoch} was the best on the validation images "
            f"({best.metric} of {result.target}: {best.value:.4g})."
        )


def _costs(directory: RunDirectory, target: str, cost: Cost) -> Iterator[str]:
    yield (
        f"\n{target} takes {cost.inference_flops / 1e6:,.1f} MFLOPs an image (a "
        f"multiplication and an addition are two) and has {cost.parameters:,} parameters. "
        f"Training took {cost.training_flops / 1e6:,.1f} MFLOPs for each image in each epoch."
    )
    run = RunDirectory(directory.path.parent)
    run = run if directory == run.best else directory  # the best epoch has the run's teachers
    first = [read_result(RunDirectory(folder)) for folder in run.teachers.glob("*/")]
    flops = sum(each.cost.training_flops for each in first if each and each.cost)
    if flops:
        yield f"Training its teachers first took another {flops / 1e6:,.1f} MFLOPs."


def _usage(directory: RunDirectory, result: RunResult) -> Iterator[str]:
    configs = {file.parent.name: file for file in sorted(directory.nodes.glob("*/config.json"))}
    if configs:
        name = result.target if result.target in configs else next(iter(configs))
        architecture = json.loads(configs[name].read_text(encoding="utf-8"))["architecture"]
        package = model_entrypoint(architecture).__module__.partition(".")[0]
        registers = "" if package == "timm" else f"import {package}  # registers {architecture}\n"
        yield (
            f"With timm, in this folder:\n\n```python\nimport timm\n{registers}\n"
            f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()\n'
            "config = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**config)\n"
            'names = model.pretrained_cfg["label_names"]\n```\n'
        )
    yield (
        "With timm_ktg, which loads ensembles, too:\n\n```python\n"
        'import timm_ktg\n\nmodel = timm_ktg.load_run("..")  # the folder of the run\n'
        "model.mean, model.std  # of the images that it takes\nmodel.class_names\n```"
    )


def _classes(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _CLASSES} more" if len(names) > _CLASSES else ""
    return ", ".join(names[:_CLASSES]) + more + "."
