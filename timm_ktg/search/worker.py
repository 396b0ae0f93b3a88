"""One worker of a search, of perhaps many: it joins the study and runs trials until it has enough.

What the workers do together beside the trials is a job (see `Jobs`): the weights of frozen nodes,
the sweep, the final trainings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from optuna import Study, Trial, get_all_study_names
from optuna.storages import BaseStorage

from ..errors import RecipeError, located
from ..graph.topology import CUTOFF
from ..recipe.recipe import SEARCH, read_recipe, save_recipe
from ..recipe.search_config import SearchConfig, SearchRecipe
from ..recipe.splits import build_splits
from ..tracking.wandb_run import mode_of
from ..train.checks import smallest_update
from ..train.seeds import with_seed
from .canonical import FROZEN, LEARNS
from .controls import best_and_controls
from .identity import identity_of
from .jobs import Jobs
from .looks import looks_before
from .methods import Method, build_method
from .objective import GraphObjective
from .processes import WorkerProcesses, failures
from .pruning import build_pruner
from .recipes import RecipeBuilder, candidate_named, candidates_recipe, label_only, on_all_images
from .result import Row
from .sampler import GraphSampler
from .space import Choices, build_choices, controls
from .storage import open_artifacts, open_storage
from .study import open_study, say
from .teachers import Teacher, teachers_for
from .tracking import StudyTracking, create_sweep, make_run_ids, run_ids_of
from .trials import finished
from .weights import NoWeightsError, SharedWeights, Train


@dataclass(frozen=True)
class Worker:
    """One worker of a search; made by `join_search`.

    Args:
        recipe: The search's recipe.
        directory: Where everything that this worker writes lies.
        processes: Train.
        choices: What there is to draw.
        method: How trials follow one another.
        study: The study.
        storage: Where the study is kept.
        identity: What must be the same for all workers of the study.
        seen: How many times the study's test figures had been shown when this worker joined.
    """

    recipe: SearchRecipe
    directory: Path
    processes: WorkerProcesses
    choices: Choices
    method: Method
    study: Study
    storage: BaseStorage
    identity: Mapping[str, Any]
    seen: int

    def search(self) -> list[Row]:
        """Run trials until all workers have run enough; return the best graphs and the controls."""
        search = self.recipe.search
        pretrained = self._pretrained()
        self._make_sweep()
        builder = RecipeBuilder(self.recipe, pretrained.path, self.recipe.train.seed)
        objective = GraphObjective(
            builder, self.choices, self.processes, self.tracking, self.method
        )
        self.method.run(self.study, objective, self.catch)
        values = {
            model: value
            for model in search.models
            if (value := pretrained.value(Teacher(model, 1, self.recipe.train.seed))) is not None
        }
        return best_and_controls(self.study, self.choices, self.recipe, values)

    @property
    def tracking(self) -> StudyTracking:
        """Shows the trials and the study."""
        run_ids = run_ids_of(self.study)
        return StudyTracking(self.recipe.tracking, run_ids, self.choices, self.directory)

    @property
    def catch(self) -> tuple[type[Exception], ...]:
        """What fails a trial and not the worker."""
        return (NoWeightsError, *failures())

    def jobs(self, purpose: str, names: Sequence[str]) -> Jobs:
        """Return jobs that the study's workers share.

        Args:
            purpose: What they are for, different for each call.
            names: A name for each.
        """
        return Jobs(f"{self.study.study_name}/{purpose}", self.storage, names, self.identity)

    def weights(
        self, teachers: Sequence[Teacher], purpose: str, folder: str, train: Train
    ) -> SharedWeights:
        """Return the weights of teachers; those that the recipe does not give are trained.

        Args:
            teachers: The teachers.
            purpose: What they are for, different for each call.
            folder: Where in the directory this worker keeps its copies.
            train: Trains one, where no other worker does.
        """
        given = self.recipe.search.weights
        missing = [each for each in teachers if each.number > len(given.get(each.model, ()))]
        jobs = self.jobs(purpose, [str(each) for each in missing]) if missing else None
        store = open_artifacts(self.recipe.search, self.directory)
        shared = SharedWeights(missing, jobs, store, self.directory / folder, given)
        shared.train(train, self.catch)
        return shared

    def _pretrained(self) -> SharedWeights:
        """Return the weights of frozen nodes, trained on the search's own split."""
        search, seed = self.recipe.search, self.recipe.train.seed
        kinds, gates = search.auxiliary_kinds, [gate.gate for gate in search.gates]
        can_freeze = FROZEN in kinds or (LEARNS in kinds and CUTOFF in gates)
        most = max(search.nodes) - 1 if can_freeze else 0
        for model, files in search.weights.items():
            if model in search.models and len(files) < most:
                say(
                    f"search.weights: a graph may have {most} frozen nodes of {model}. Found "
                    f"{len(files)} file(s); the others are trained."
                )

        def train(teacher: Teacher, path: Path) -> float:
            recipe = with_seed(label_only(self.recipe, teacher.model), teacher.training_seed)
            return self.processes.trial(recipe, export=path)

        teachers = teachers_for(search.models, most, seed)
        return self.weights(teachers, "teachers", "weights", train)

    def _make_sweep(self) -> None:
        """Make the sweep of a study that is shown online, once for all workers."""
        tracking, study = self.recipe.tracking, self.study
        if run_ids_of(study).sweep or not tracking.wandb or mode_of(tracking) != "online":
            return

        def make(name: str, trial: Trial) -> float:
            make_run_ids(study, create_sweep(tracking, study.study_name, self.choices))
            return 0.0

        self.jobs("wandb-sweep", ["sweep"]).work(make)


def join_search(
    recipe: SearchRecipe,
    name: str,
    directory: Path,
    processes: WorkerProcesses,
    must_exist: bool = False,
    lost: Collection[str] = (),
) -> Worker:
    """Join the study of a search, or make it, once all models can be built.

    Args:
        recipe: The search's recipe.
        name: Name of the study.
        directory: Where everything that this worker writes goes.
        processes: Train.
        must_exist: Do not make the study.
        lost: Hosts whose workers are dead, as the user says.

    Raises:
        RecipeError: What was asked for is wrong.
    """
    search = recipe.search
    with located("search"):
        choices = build_choices(search)
        sampler = GraphSampler(choices, search.sampler, search.seed, search.unique)
        method = build_method(recipe)
    identity = identity_of(recipe)
    check_candidates(recipe, processes)
    with located("output-dir"):
        directory.mkdir(parents=True, exist_ok=True)
    storage, pruner = open_storage(search, directory, lost), build_pruner(search)
    prepare = partial(_prepare, search, choices)
    if must_exist and name not in get_all_study_names(storage):
        raise RecipeError([f"resume: there is no study `{name}`."])
    study = open_study(name, storage, sampler, pruner, identity, prepare)
    named = search.model_copy(update={"study": name})
    save_recipe(recipe.model_copy(update={"search": named}), directory / SEARCH)
    done = len(finished(study))
    say(f"Study {name}: {choices.size:,} ways to choose, {done} trials so far.")
    say(method.title)
    seen = looks_before(study)
    return Worker(recipe, directory, processes, choices, method, study, storage, identity, seen)


def check_directory(directory: Path, name: str) -> None:
    """Raise RecipeError if a directory is another study's, whose result would be replaced.

    Args:
        directory: The directory of a search.
        name: Name of its study.
    """
    path = directory / SEARCH
    held = (read_recipe(path).get("search") or {}).get("study") if path.is_file() else None
    if held not in (None, name):  # earlier versions wrote none
        said = f"{directory} is that of study `{held}`. Choose another for `{name}`."
        raise RecipeError([f"output-dir: {said}"])


def check_candidates(recipe: SearchRecipe, processes: WorkerProcesses) -> None:
    """Build every candidate model, and call every gate and loss, before anything is trained.

    Args:
        recipe: The search's recipe.
        processes: Build the models.

    Raises:
        RecipeError: All that is wrong.
    """
    candidates = candidates_recipe(recipe)
    try:
        processes.check(candidates)
        whole = on_all_images(candidates)
        if recipe.data.holdout and recipe.search.top_k and recipe.search.final_seeds:
            images = len(build_splits(whole.data).train)
            if smallest_update(whole, images, PartialState().num_processes) == 1:
                processes.check(whole)  # what a single image does is seen now, not after all trials
    except RecipeError as error:
        problems = {candidate_named(each, recipe.search.models): None for each in error.problems}
        raise RecipeError(list(problems)) from None


def _prepare(search: SearchConfig, choices: Choices, study: Study) -> None:
    """Give a new study the ids of its runs, and enqueue the controls that its space contains."""
    make_run_ids(study)
    if not search.enqueue_controls:
        return
    for graph in controls(choices.largest):
        try:
            study.enqueue_trial(choices.params(graph), skip_if_exists=True)
        except ValueError as error:
            say(f"Not enqueued, because the space does not contain it: {error}")
