"""A search's end: the best graphs and the controls trained on all training images, and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from optuna import Trial

from ..errors import RecipeError
from ..recipe.recipe import save_recipe
from ..recipe.schedule import epochs_of
from ..recipe.splits import build_splits
from ..records.files import write_whole
from ..records.run_directory import RunDirectory
from ..records.sample import Sample
from ..tracking.wandb_run import mode_of
from .canonical import TARGET
from .looks import Looks, look, plan
from .recipes import RecipeBuilder, label_only, on_all_images
from .result import Result, Row, spent
from .show import control_path, show_result
from .study import say
from .study_run import show_study
from .teachers import Teacher
from .weights import SharedWeights, file_name
from .worker import Worker


def finish(worker: Worker, rows: Sequence[Row]) -> None:
    """Train the best graphs and the controls on all training images, and show them.

    Args:
        worker: This worker of the search.
        rows: The graphs, the best first.

    Raises:
        RecipeError: There is no best graph.
    """
    search, directory = worker.recipe.search, worker.directory
    if not rows or rows[0].trial is None:
        raise RecipeError(["search: no trial was completed, so there is no best graph."])
    digest = digest_of(rows, search.final_seeds)
    seeds = search.final_seeds if search.top_k else []
    first = seeds[0] if seeds else worker.recipe.train.seed
    weights = _teachers(worker, rows, seeds or [first], digest)
    builder = RecipeBuilder(worker.recipe, weights.path, first)
    for row in rows:
        path = control_path(directory, row)
        if row.trial is not None:
            path = directory / (row.name.removesuffix("-1") + ".yaml")
        path.parent.mkdir(exist_ok=True)
        save_recipe(builder.final(row), path)
    if seeds:
        plan(worker.study, seeds, worker.seen)
    samples = _train(worker, rows, weights, seeds, digest)
    result = _result(worker, rows, samples, seeds)
    write_whole(directory / "result.json", json.dumps(result.as_json(), indent=2) + "\n")
    show_result(result, directory)
    for run in (run_path(directory, rows[0], seed) for seed in seeds[:1]):
        if run.is_dir():  # else another machine trained it
            say(f"weights    {run} (timm_ktg.load_run)")
    if worker.recipe.tracking.wandb:
        runs = [run_path(directory, rows[0], seed) for seed in seeds[:1]]
        names = rows[0].graph.members or (TARGET,)
        files = [run / "nodes" / f"{name}.safetensors" for run, name in product(runs, names)]
        _show_study(worker, result, builder, [directory / "best.yaml", *files])


def digest_of(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Return what tells these final trainings from others, as part of their jobs' names.

    It comes from the repr of a row. If that changes, a search that was interrupted during its
    final trainings begins them anew.
    """
    return sha256(repr([rows, seeds]).encode()).hexdigest()[:8]


def run_path(directory: Path, row: Row, seed: int) -> Path:
    """Return where a final run goes."""
    name = f"{row.name.replace(' ', '-')}-{row.graph.key[:6]}"
    # Earlier versions left runs there whose teachers had another seed.
    taught = "-own-teachers" if row.graph.frozen_nodes else ""
    return directory / "final" / f"{name}{taught}" / f"seed-{seed}"


def _teachers(
    worker: Worker, rows: Sequence[Row], seeds: Sequence[int], digest: str
) -> SharedWeights:
    """Return the weights of the rows' frozen nodes, of each seed, trained on all images."""
    teachers = {each for row, seed in product(rows, seeds) for each in row.teachers(seed).values()}

    def train(teacher: Teacher, path: Path) -> float:
        recipe = on_all_images(label_only(worker.recipe, teacher.model))
        folder = f"teacher-{file_name(teacher.model)}-{teacher.number}"
        run = worker.directory / "final" / folder / f"seed-{teacher.seed}"
        value = worker.processes.final(recipe, teacher.training_seed, run)
        path.write_bytes((run / "nodes" / "target.safetensors").read_bytes())
        return value

    name = f"teachers-{digest}"
    return worker.weights(sorted(teachers), name, "weights-all-images", train)


def _train(
    worker: Worker, rows: Sequence[Row], weights: SharedWeights, seeds: Sequence[int], digest: str
) -> dict[str, Sample | None]:
    """Train every row with every seed, here or by other workers.

    Returns:
        The test figures of each row by its name; None where no training succeeded.
    """
    distinct = {row.training: row for row in reversed(rows)}  # the first of each training
    by_name = {
        f"{row.name}, seed {seed}": (row, seed)
        for row, seed in product(rows, seeds)
        if distinct[row.training] is row
    }

    def do(name: str, trial: Trial) -> float:
        row, seed = by_name[name]
        path = run_path(worker.directory, row, seed)
        is_done = RunDirectory(path).summary.exists()
        say(f"{'Reading' if is_done else 'Training'} {name} on all training images.")
        builder = RecipeBuilder(worker.recipe, weights.path, seed)
        return worker.processes.final(builder.final(row), seed, path)

    figures: dict[Any, list[float]] = {row.training: [] for row in rows}
    if by_name:
        jobs = worker.jobs(f"final-{digest}", list(by_name))
        jobs.work(do, worker.catch)
        done = jobs.done()
        for name, (row, _) in by_name.items():
            if name in done:
                figures[row.training].append(done[name].value or 0.0)
    samples = {training: Sample(tuple(each)) for training, each in figures.items() if each}
    return {row.name: samples.get(row.training) for row in rows}


def _result(
    worker: Worker, rows: Sequence[Row], samples: Mapping[str, Sample | None], seeds: Sequence[int]
) -> Result:
    """Return the result, and count that its test figures are shown."""
    recipe = worker.recipe
    splits = build_splits(recipe.data.model_copy(update={"holdout": 0}))
    images = next(len(each) for each in (splits.test, splits.val, splits.train) if each is not None)
    given = recipe.search.weights
    one_teacher = [
        row.name
        for row in rows
        if any(each.number <= len(given.get(each.model, ())) for each in row.teachers(0).values())
    ]
    looks = Looks((), None, worker.seen)
    if any(samples.values()):
        looks = look(worker.study, seeds, worker.seen)
    cost = spent(worker.study, epochs_of(recipe.train))
    return Result(rows, samples, cost, looks, images, one_teacher)


def _show_study(
    worker: Worker, result: Result, builder: RecipeBuilder, files: Sequence[Path]
) -> None:
    """Show the result in Weights & Biases, once for all workers."""
    rows, tracking = result.rows, worker.tracking
    best = builder.final(rows[0]).graph

    def show(name: str, trial: Trial) -> float:
        show_study(tracking, worker.study, result, best, files)
        return 0.0

    if mode_of(worker.recipe.tracking) == "offline":
        say(f"upload     wandb sync {worker.directory / 'wandb' / 'offline-run-*'}")
    digest = digest_of(rows, worker.recipe.search.final_seeds)
    worker.jobs(f"wandb-{digest}", ["study run"]).work(show)
