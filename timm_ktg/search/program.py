"""The search from its recipe to its result, as one worker of perhaps many does it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from optuna import Study, Trial

from ..errors import located
from ..graph.gates import create_gate
from ..recipe.images import build_splits
from ..recipe.recipe import PLACE, Recipe, save_recipe
from ..recipe.search_config import GateConfig, SearchRecipe
from ..tracking.wandb_run import mode_of
from ..train.checks import code_of
from . import final
from .finish import finish
from .objective import Builder, GraphObjective
from .pruning import build_pruner
from .sampler import Choices, GraphSampler, build_choices
from .site import Site, say
from .space import CUTOFF, controls
from .storage import open_storage
from .study import Join, finished, open_study, run_trials, wait_for_others
from .team import CheckTask, Team, TrialTask
from .tracking import StudyTracking, card_of, create_sweep, make_card
from .weights import SharedWeights

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
        study = open_study(
            Join(self.name, storage, sampler, pruner, identity, prepare), must_exist=resume
        )
        save_recipe(without_storage(self.recipe), self.directory / "search.yaml")
        done = len(finished(study))
        say(f"Study {self.name}: {choices.size:,} ways to choose, {done} trials so far.")
        site = Site(self.recipe, self.directory, self.team, study, storage, identity)
        pretrained = _pretrained(site)
        builder = Builder(self.recipe, pretrained.path)
        _attach_sweep(site, choices)
        tracking = StudyTracking(self.recipe.tracking, card_of(study), choices, self.directory)
        objective = GraphObjective(builder, choices, self.team, tracking, say)
        run_trials(study, objective, self._enough, site.catch)
        wait_for_others(study, say)
        rows = final.rows(study, choices, self.recipe, pretrained.value(search.target_model))
        finish(site, rows, tracking)

    def _enough(self, study: Study) -> bool:
        return len(finished(study)) >= self.recipe.search.trials


def _attach_sweep(site: Site, choices: Choices) -> None:
    """Make the sweep of a study that is shown online, once for all workers."""
    tracking, study = site.recipe.tracking, site.study
    if card_of(study).sweep or not tracking.wandb or mode_of(tracking) != "online":
        return

    def make(name: str, trial: Trial) -> float:
        make_card(study, create_sweep(tracking, study.study_name, choices))
        return 0.0

    site.jobs("wandb-sweep", ["sweep"]).work(make, (), say)


def _pretrained(site: Site) -> SharedWeights:
    """Return the weights of frozen nodes, trained on the search's own split."""
    search = site.recipe.search
    can_freeze = max(search.nodes) > 1 and (
        search.frozen or CUTOFF in [gate.gate for gate in search.gates]
    )
    shared = site.weights(search.models if can_freeze else (), "pretrained", "weights")
    label_only = Builder(site.recipe, shared.path)

    def train(model: str, path: Path) -> float:
        return site.team.trial(TrialTask(label_only.label_only(model), export=path))

    shared.train(train, site.catch, say)
    return shared


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
