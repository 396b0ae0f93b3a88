"""A search's end: the best graphs and the controls trained on all training images, and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path

from optuna import Trial
from optuna.trial import FrozenTrial

from ..errors import RecipeError
from ..recipe.build import epochs_of
from ..recipe.recipe import Recipe, save_recipe
from ..records.files import write_whole
from ..tracking.wandb_run import mode_of
from . import final
from .objective import Builder
from .show import show_result
from .site import Site, say
from .study_run import show_study
from .team import FinalTask
from .tracking import StudyTracking
from .weights import SharedWeights, file_name


def finish(site: Site, rows: Sequence[final.Row], tracking: StudyTracking) -> None:
    """Train the best graphs and the controls on all training images, and show them.

    Args:
        site: The search.
        rows: The graphs, the best first.
        tracking: Where the result is shown.

    Raises:
        RecipeError: There is no best graph.
    """
    search = site.recipe.search
    if not rows or rows[0].trial is None:
        raise RecipeError(["search: no trial was completed, so there is no best graph."])
    digest = sha256(repr([rows, search.final_seeds]).encode()).hexdigest()[:8]
    builder = Builder(site.recipe, _teachers(site, rows, digest).path)
    for row in rows:
        if row.trial is not None:
            number = row.name.removeprefix("best-")
            name = "best.yaml" if number == "1" else f"best-{number}.yaml"
            save_recipe(final.final_recipe(builder, row), site.directory / name)
    seeds = search.final_seeds if search.top_k else []
    done = _train(site, rows, builder, seeds, digest)
    samples = {row.name: final.sample(done, row, seeds) for row in rows}
    result = final.Result(rows, samples, final.spent(site.study, epochs_of(site.recipe.train)))
    text = json.dumps(result.as_json(), indent=2)
    write_whole(site.directory / "result.json", f"{text}\n")
    show_result(result, site.directory)
    if not site.recipe.tracking.wandb:
        return
    best = final.final_recipe(builder, rows[0]).graph

    def show(name: str, trial: Trial) -> float:
        show_study(tracking, site.study, result, best, seeds)
        return 0.0

    if mode_of(site.recipe.tracking) == "offline":
        say(f"upload     wandb sync {site.directory / 'wandb' / 'offline-run-*'}")
    site.jobs(f"wandb-{digest}", ["study run"]).work(show, (), say)


def _teachers(site: Site, rows: Sequence[final.Row], digest: str) -> SharedWeights:
    """Return the weights of the rows' frozen nodes, trained on all training images."""
    models = {
        node.model
        for row in rows
        for node in row.graph.nodes
        if node.name in row.graph.frozen_nodes
    }
    shared = site.weights(sorted(models), f"teachers-{digest}", "weights-all-images")
    label_only = Builder(site.recipe, shared.path)

    def train(model: str, path: Path) -> float:
        recipe = label_only.label_only(model)
        recipe = recipe.model_copy(update={"data": final.whole(recipe.data)})
        run = site.directory / "final" / f"teacher-{file_name(model)}"
        value = _tested(site, recipe, recipe.train.seed, run)
        path.write_bytes((run / "nodes" / "target.safetensors").read_bytes())
        return value

    shared.train(train, site.catch, say)
    return shared


def _train(
    site: Site, rows: Sequence[final.Row], builder: Builder, seeds: Sequence[int], digest: str
) -> dict[str, FrozenTrial]:
    """Train every row with every seed, here or by other workers, and return what succeeded."""
    if not seeds:
        return {}
    by_name = {final.job_name(row.name, seed): (row, seed) for row, seed in product(rows, seeds)}

    def do(name: str, trial: Trial) -> float:
        row, seed = by_name[name]
        say(f"Training {name} on all training images.")
        path = final.run_path(site.directory, row, seed)
        return _tested(site, final.final_recipe(builder, row), seed, path)

    jobs = site.jobs(f"final-{digest}", list(by_name))
    jobs.work(do, site.catch, say)
    return jobs.done()


def _tested(site: Site, recipe: Recipe, seed: int, path: Path) -> float:
    """Train a recipe and return its target's top-1 in percent."""
    return site.team.final(FinalTask(recipe, seed, path)).target_accuracy.top1
