"""A suite: methods, data sets and seeds that are trained and compared, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt
from pydantic_core import InitErrorDetails

from ..data import derive_seed
from ..errors import RecipeError, did_you_mean
from .data_config import DataConfig
from .flags import below
from .recipe import Recipe, check_section, read_recipe
from .resume import training_values
from .section import Location, Section, problem

# Folders and files are called by the names.
_NAME = re.compile(r"\w[\w.+-]*")


class MethodConfig(Section):
    """A way of training: a graph, and what of `train` belongs to it."""

    title: str | None = None
    """What it is called in tables; null: its name."""
    found_on: str | None = None
    """Data set that a search found its graph on, for the page's table of transfers."""
    graph: dict[str, Any]
    """Section `graph` of its recipe. A model may be a name from the data set's `models`."""
    weights: dict[str, str] = {}
    """Nodes that get the weights of another method's target, trained with the same seed."""
    train: dict[str, Any] = {}
    """Fields of the section `train` that differ from the data set's."""
    own_seed: bool = False
    """Derive the training's seed from the method's name, too, as a teacher needs it: it must not
    start from the student's initial weights."""


class DatasetConfig(Section):
    """Images, settings and seeds that all methods share."""

    title: str | None = None
    """What it is called in tables; null: its name."""
    models: dict[str, str] = {}
    """timm's model by the name that methods use, such as `student`."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Planned seeds; say so in the tables if more were added after a first look."""
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the methods to train; null: all."""
    weights_from: str | None = None
    """Data set whose runs give the weights, for shorter trainings from the same teachers; null:
    this one's."""
    shown: bool = True
    """Whether the page shows it."""
    data: dict[str, Any] = {}
    """Section `data`; its `dataset` names the images, wherever they are."""
    place: str | None = None
    """Where the images are on this machine; null: at `data.dataset`."""
    train: dict[str, Any] = {}
    """Section `train`."""


class SuiteConfig(Section):
    """A suite."""

    description: str = ""
    """Text above the tables."""
    bases: Annotated[list[str], Field(min_length=1)]
    """Methods that every other one is compared with, such as [label-only, kd]."""
    datasets: dict[str, DatasetConfig]
    """The data sets by name."""
    methods: dict[str, MethodConfig]
    """The methods by name."""

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the names that nothing has or no file can have, and weights in a circle."""
        methods, datasets = data.get("methods"), data.get("datasets")
        if not isinstance(methods, Mapping) or not isinstance(datasets, Mapping):
            return
        for section, names in (("datasets", datasets), ("methods", methods)):
            for name in names:
                if not _NAME.fullmatch(str(name)):
                    said = "should be a name of letters, digits, `-`, `_`, `.`, `+`, for a folder."
                    yield problem((section, name), said)
        given: list[tuple[Location, Any]] = [
            (("bases", i), name) for i, name in _numbered(data.get("bases"))
        ]
        for section, group in (("datasets", datasets), ("methods", methods)):
            for name, each in group.items():
                if "seed" in below(each, "train"):
                    said = "should be left out, because the data set names the seeds."
                    yield problem((section, name, "train", "seed"), said)
        for name, each in datasets.items():
            listed = each.get("methods") if isinstance(each, Mapping) else None
            given += [(("datasets", name, "methods", i), method) for i, method in _numbered(listed)]
            giver = each.get("weights_from") if isinstance(each, Mapping) else None
            if isinstance(giver, str) and (giver == name or giver not in datasets):
                said = f"should be another data set. Found {giver}."
                yield problem(("datasets", name, "weights_from"), said)
        needs: dict[str, list[str]] = {}
        for name, each in methods.items():
            home = each.get("found_on") if isinstance(each, Mapping) else None
            if isinstance(home, str) and home not in datasets:
                said = f"should be a data set of the suite. Found {home}."
                yield problem(("methods", name, "found_on"), said)
            weights = each.get("weights") if isinstance(each, Mapping) else None
            weights = weights if isinstance(weights, Mapping) else {}
            given += [(("methods", name, "weights", node), weights[node]) for node in weights]
            needs[name] = [each for each in weights.values() if isinstance(each, str)]
        for where, name in given:
            if isinstance(name, str) and name not in methods:
                hint = did_you_mean(str(name), methods)
                said = f"`{name}` is no method. Methods: {', '.join(methods)}.{hint}"
                yield problem(where, said)
        for name in needs:
            if name in _reached(needs, name):
                said = f"should not lead back to {name}, which then would need its own weights."
                yield problem(("methods", name, "weights"), said)

    def methods_of(self, dataset: str) -> list[str]:
        """Return the methods that a data set is trained with, in order.

        Those that give weights are among them, unless another data set's give the weights.
        """
        how = self.datasets[dataset]
        wanted = set(self.methods if how.methods is None else how.methods)
        if how.weights_from is not None:
            return [name for name in self.methods if name in wanted]
        wanted |= {need for name in wanted for need in self.teachers_of(name)}
        return [name for name in self.methods if name in wanted]

    def teachers_of(self, method: str) -> list[str]:
        """Return the methods that give weights to a method, or to one that does, in order."""
        needs = {name: list(each.weights.values()) for name, each in self.methods.items()}
        reached = _reached(needs, method)
        return [name for name in self.methods if name in reached]

    def seed(self, method: str, seed: int) -> int:
        """Return the seed of a method's training, for one of the planned seeds."""
        own = self.methods[method].own_seed
        return derive_seed(f"method {method}", seed) % 2**32 if own else seed

    def recipe(self, dataset: str, method: str, seed: int, weights: Mapping[str, Path]) -> Recipe:
        """Return the recipe of a training.

        Args:
            dataset: Name of the data set.
            method: Name of the method.
            seed: One of the planned seeds.
            weights: A file by method, for those that give weights; where one is missing, the node
                is `pretrained` instead, so that the rest of the recipe can be checked.

        Raises:
            RecipeError: What is wrong with it, each line beginning with the names of both.
        """
        images, how = self.datasets[dataset], self.methods[method]
        nodes = below(how.graph, "nodes")
        nodes = {name: _with_model(node, images.models) for name, node in nodes.items()}
        for name, giver in how.weights.items():
            file = weights.get(giver)
            given = {"pretrained": True} if file is None else {"checkpoint_path": str(file)}
            nodes = {**nodes, name: {**below(nodes, name), **given}}
        data = {**images.data, **({"dataset": images.place} if images.place else {})}
        train = {**images.train, **how.train, "seed": self.seed(method, seed)}
        values = {"graph": {**how.graph, "nodes": nodes}, "data": data, "train": train}
        try:
            return check_section(Recipe, values)
        except RecipeError as error:
            lines = [f"{method} on {dataset}: {line}" for line in error.problems]
            raise RecipeError(lines) from None

    def digest(self, dataset: str, method: str) -> str:
        """Return what changes with anything that decides a method's figures, but for its seed.

        That is its training, and the test images. Images are known by their name, `data.dataset`,
        and not by their `place`. Other fields are left out where they have their defaults, so that
        a later version, which has more fields, gives the same.
        """
        needed = self.methods[method].weights
        recipe = self.recipe(dataset, method, 0, {})
        values = training_values(recipe.model_dump(mode="json", exclude_defaults=True))
        how = self.datasets[dataset]
        giver = how.weights_from or dataset
        dataset_name = how.data.get("dataset", DataConfig().dataset)
        form = [
            values,
            {node: self.digest(giver, name) for node, name in needed.items()},
            {"dataset": dataset_name, "test_split": recipe.data.test_split},
        ]
        return sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:8]


def load_suite(path: Path, places: Mapping[str, str] | None = None) -> SuiteConfig:
    """Return the suite in a file, once every recipe in it is checked.

    Args:
        path: The file.
        places: Where images are, by data set, in place of what the file says (`place`).

    Raises:
        RecipeError: The suite is wrong; lists all problems.
    """
    values = read_recipe(path)
    for name, place in (places or {}).items():
        datasets = below(values, "datasets")
        if name not in datasets:
            known = ", ".join(datasets)
            raise RecipeError([f"data: {name} is no data set of the suite. It has {known}."])
        moved = {name: {**below(datasets, name), "place": place}}
        values = {**values, "datasets": {**datasets, **moved}}
    suite = check_section(SuiteConfig, values)
    problems: list[str] = []
    for name, how in suite.datasets.items():
        if "test_split" in how.data and how.data["test_split"] is None:
            said = "should name a split, because methods are compared on test images."
            problems.append(f"datasets.{name}.data.test_split: {said}")
        for method in suite.methods_of(name):
            try:
                recipe = suite.recipe(name, method, 0, {})
                problems += _weights_problems(suite, name, method, recipe)
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return suite


def _weights_problems(
    suite: SuiteConfig, dataset: str, method: str, recipe: Recipe
) -> Iterator[str]:
    """Yield what cannot give a node its weights: an ensemble, say, or another model."""
    for node in recipe.graph.trained_first:
        yield (
            f"methods.{method}.graph.nodes.{node}.train_first: should be off in a suite, whose "
            "methods share teachers (weights), so that their cost is counted."
        )
    giver = suite.datasets[dataset].weights_from or dataset
    for node, name in suite.methods[method].weights.items():
        graph = suite.recipe(giver, name, 0, {}).graph
        given, wanted = graph.nodes[graph.target], recipe.graph.nodes[node]
        if given.title != wanted.title:
            yield (
                f"methods.{method}.weights.{node}: {name} should train {wanted.title} on {giver}. "
                f"Found {given.title}."
            )


def _with_model(node: Any, models: Mapping[str, str]) -> Any:
    """Return a node with timm's name of its model."""
    if not isinstance(node, Mapping) or "model" not in node:
        return node
    return {**node, "model": models.get(str(node["model"]), node["model"])}


def _numbered(names: Any) -> list[tuple[int, Any]]:
    return list(enumerate(names)) if isinstance(names, list) else []


def _reached(needs: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """Return all methods that a method needs, directly or not."""
    found: set[str] = set()
    left = list(needs.get(name, ()))
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += needs.get(each, ())
    return found
