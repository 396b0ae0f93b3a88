"""The search from its recipe to its result, as one worker of perhaps many does it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from optuna import Study, Trial
from optuna.storages import BaseStorage

from ..checks import code_of
from ..errors import RecipeError, located
from ..files import write_whole
from ..gates import create_gate
from ..metrics import TrainingError
from ..recipe.images import build_splits
from ..recipe.recipe import PLACE, Recipe, save_recipe
from ..recipe.search_config import GateConfig, SearchRecipe
from ..wandb_run import mode_of
from . import final
from .jobs import Jobs
from .objective import Builder, GraphObjective
from .pruning import build_pruner
from .sampler import Choices, GraphSampler, build_choices
from .show import show_result
from .space import CUTOFF, controls
from .storage import open_artifacts, open_storage
from .study import Join, finished, open_study, run_trials, wait_for_others
from .study_run import show_study
from .team import CheckTask, FinalTask, Team, TrialTask
from .tracking import StudyTracking, card_of, create_sweep, make_card
from .weights import NoWeightsError, SharedWeights, file_name

# What fails a trial and not the worker.
CATCH: tuple[type[Exception], ...] = (TrainingError, NoWeightsError)
OUT_OF_MEMORY: tuple[type[Exception], ...] = (torch.OutOfMemoryError, MemoryError)

# Fields that may differ between the workers of a study.
FREE = {
    "search": {
        *("trials", "study", "storage", "artifacts", "heartbeat_interval", "grace_period"),
        *("top_k", "final_seeds", "seed", "sampler", "unique", "enqueue_controls", "weights"),
    },
    **PLACE,
}


@dataclass(frozen=True)
class Worker:
    """One worker of a search.

    Args:
        recipe: The search's recipe.
        name: Name of the study.
        directory: Where all that this worker writes lies.
        team: Trains.
    """

    recipe: SearchRecipe
    name: str
    directory: Path
    team: Team

    def run(self, resume: bool = False) -> None:
        """Search, train the best again, and show the result.

        Args:
            resume: The study should be there already.

        Raises:
            RecipeError: What was asked for is wrong.
        """
        search = self.recipe.search
        with located("search"):
            choices = build_choices(search)
            sampler = GraphSampler(choices, search.sampler, search.seed, search.unique)
        identity = identity_of(self.recipe)
        self.team.check(CheckTask(check_recipe_of(self.recipe)))
        with located("output-dir"):
            self.directory.mkdir(parents=True, exist_ok=True)
        storage = open_storage(search, self.directory)
        pruner = build_pruner(search)
        prepare = partial(_prepare, self.recipe, choices)
        join = Join(self.name, storage, sampler, pruner, identity, prepare)
        study = open_study(join, must_exist=resume)
        save_recipe(without_storage(self.recipe), self.directory / "search.yaml")
        done = len(finished(study))
        say(f"Study {self.name}: {choices.size:,} ways to choose, {done} trials so far.")
        pretrained = self._pretrained(storage, identity)
        builder = Builder(self.recipe, pretrained.path)
        self._attach_sweep(study, choices, storage, identity)
        tracking = StudyTracking(self.recipe.tracking, card_of(study), choices, self.directory)
        objective = GraphObjective(builder, choices, self.team, tracking, say)
        run_trials(study, objective, self._enough, self._catch)
        wait_for_others(study, say)
        rows = final.rows(study, choices, self.recipe, pretrained.value(search.target_model))
        self._finish(study, rows, storage, identity, tracking)

    def _attach_sweep(
        self, study: Study, choices: Choices, storage: BaseStorage, identity: dict[str, Any]
    ) -> None:
        """Make the sweep of a study that is shown online, once for all workers."""
        tracking = self.recipe.tracking
        if card_of(study).sweep or not tracking.wandb or mode_of(tracking) != "online":
            return

        def make(name: str, trial: Trial) -> float:
            make_card(study, create_sweep(tracking, self.name, choices))
            return 0.0

        Jobs(f"{self.name}/wandb-sweep", storage, ["sweep"], identity).work(make, (), say)

    def _enough(self, study: Study) -> bool:
        return len(finished(study)) >= self.recipe.search.trials

    @property
    def _catch(self) -> tuple[type[Exception], ...]:
        """What fails a trial and not the worker; of several processes one may be out of memory."""
        return CATCH if PartialState().num_processes > 1 else (*CATCH, *OUT_OF_MEMORY)

    def _pretrained(self, storage: BaseStorage, identity: dict[str, Any]) -> SharedWeights:
        """Return the weights of frozen nodes, trained on the search's own split."""
        search = self.recipe.search
        can_freeze = max(search.nodes) > 1 and (
            search.frozen or CUTOFF in [gate.gate for gate in search.gates]
        )
        missing = [model for model in search.models if model not in search.weights]
        jobs = None
        if can_freeze and missing:
            jobs = Jobs(f"{self.name}/pretrained", storage, missing, identity)
        shared = self._shared(jobs, "weights")
        label_only = Builder(self.recipe, shared.path)

        def train(model: str, path: Path) -> float:
            return self.team.trial(TrialTask(label_only.label_only(model), export=path))

        shared.train(train, self._catch, say)
        return shared

    def _finish(
        self,
        study: Study,
        rows: list[final.Row],
        storage: BaseStorage,
        identity: dict[str, Any],
        tracking: StudyTracking,
    ) -> None:
        """Train the best graphs and the controls on all training images, and show them."""
        search = self.recipe.search
        if not rows or rows[0].trial is None:
            raise RecipeError(["search: no trial was completed, so there is no best graph."])
        digest = sha256(repr([rows, search.final_seeds]).encode()).hexdigest()[:8]
        teachers = self._teachers(rows, storage, identity, digest)
        builder = Builder(self.recipe, teachers.path)
        for row in rows:
            if row.trial is not None:
                number = row.name.removeprefix("best-")
                name = "best.yaml" if number == "1" else f"best-{number}.yaml"
                save_recipe(final.final_recipe(builder, row), self.directory / name)
        by_name = {
            final.job_name(row.name, seed): (row, seed)
            for row, seed in product(rows, search.final_seeds if search.top_k else [])
        }
        done = {}
        if by_name:
            jobs = Jobs(f"{self.name}/final-{digest}", storage, list(by_name), identity)

            def do(name: str, trial: Trial) -> float:
                row, seed = by_name[name]
                say(f"Training {name} on all training images.")
                path = final.run_path(self.directory, row, seed)
                return self._tested(final.final_recipe(builder, row), seed, path)

            jobs.work(do, self._catch, say)
            done = jobs.done()
        samples = {row.name: final.sample(done, row, search.final_seeds) for row in rows}
        spent = final.spent(study, self.recipe.train.epochs)
        result = final.result_of(rows, samples, spent)
        write_whole(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        show_result(rows, samples, spent, self.directory)
        if tracking.tracking.wandb:
            best = final.final_recipe(builder, rows[0]).graph
            seeds = search.final_seeds if search.top_k else []

            def show(name: str, trial: Trial) -> float:
                show_study(tracking, study, rows, samples, spent, best, seeds)
                return 0.0

            if mode_of(tracking.tracking) == "offline":
                say(f"upload     wandb sync {self.directory / 'wandb' / 'offline-run-*'}")
            jobs = Jobs(f"{self.name}/wandb-{digest}", storage, ["study run"], identity)
            jobs.work(show, (), say)

    def _teachers(
        self, rows: list[final.Row], storage: BaseStorage, identity: dict[str, Any], digest: str
    ) -> SharedWeights:
        """Return the weights of the rows' frozen nodes, trained on all training images."""
        models = {
            node.model
            for row in rows
            for node in row.graph.nodes
            if node.name in row.graph.frozen_nodes
        }
        missing = sorted(models - self.recipe.search.weights.keys())
        jobs = None
        if missing:
            jobs = Jobs(f"{self.name}/teachers-{digest}", storage, missing, identity)
        shared = self._shared(jobs, "weights-all-images")
        label_only = Builder(self.recipe, shared.path)

        def train(model: str, path: Path) -> float:
            recipe = label_only.label_only(model)
            recipe = recipe.model_copy(update={"data": final.whole(recipe.data)})
            run = self.directory / "final" / f"teacher-{file_name(model)}"
            value = self._tested(recipe, recipe.train.seed, run)
            path.write_bytes((run / "nodes" / "target.safetensors").read_bytes())
            return value

        shared.train(train, self._catch, say)
        return shared

    def _tested(self, recipe: Recipe, seed: int, path: Path) -> float:
        summary = self.team.final(FinalTask(recipe, seed, path))
        return float(summary["nodes"][summary["target"]]["top1"])

    def _shared(self, jobs: Jobs | None, folder: str) -> SharedWeights:
        search = self.recipe.search
        store = open_artifacts(search, self.directory)
        return SharedWeights(jobs, store, self.directory / folder, search.weights)


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


def identity_of(recipe: SearchRecipe) -> dict[str, Any]:
    """Return what must be the same for all workers of a study, by the place in the recipe.

    Raises:
        RecipeError: What is wrong with the data set.
    """
    values = recipe.model_dump(mode="json")
    fields = {
        f"{section}.{field}": value
        for section, free in FREE.items()
        for field, value in values[section].items()
        if field not in free
    }
    files = {model: Path(path).read_bytes() for model, path in recipe.search.weights.items()}
    return {
        **fields,
        "search.gates": [_identity_of_gate(gate) for gate in recipe.search.gates],
        "search.weights": {name: sha256(data).hexdigest()[:16] for name, data in files.items()},
        "data (images and labels)": build_splits(recipe.data).fingerprint,
    }


def _identity_of_gate(gate: GateConfig) -> str:
    """Return a gate as it is shown; of one that is not ours its code too, which may change."""
    bound = create_gate(gate.gate, **gate.gate_kwargs)
    ours = bound.function.__module__.startswith("timm_ktg.")
    return gate.shown if ours else f"{gate.shown} (code {code_of(bound)})"


def without_storage(recipe: SearchRecipe) -> SearchRecipe:
    """Return a recipe without the url of a database, which may hold a password."""
    search = recipe.search
    if search.storage is None or "://" not in search.storage:
        return recipe
    without = search.model_copy(update={"storage": None})
    return recipe.model_copy(update={"search": without})


def check_recipe_of(recipe: SearchRecipe) -> Recipe:
    """Return a recipe with every candidate model, to see before a search that all can be built."""
    search = recipe.search
    models = {"target": search.target_model}
    models |= {f"aux{number}": model for number, model in enumerate(search.models, start=1)}
    nodes = {
        name: {"model": model, "learns_from": {"label": "through"}}
        for name, model in models.items()
    }
    graph = {"target": "target", "nodes": nodes, "keep": list(nodes)}
    data, train = recipe.data.model_dump(), recipe.train.model_dump()
    return Recipe.model_validate({"graph": graph, "data": data, "train": train})


def _prepare(recipe: SearchRecipe, choices: Choices, study: Study) -> None:
    """Give a new study what its runs are known by, and the controls that a space holds."""
    make_card(study)
    if not recipe.search.enqueue_controls:
        return
    for graph in controls(choices.largest).values():
        try:
            study.enqueue_trial(choices.params(graph))
        except ValueError as error:
            say(f"Not enqueued, for the space does not hold it: {error}")
