"""Untrained studies and runs to report on, and a browser to read reports in."""

import gc
import json
import os
import random
from pathlib import Path
from shutil import which
from typing import Any

import optuna
import pytest
import yaml
from optuna import Study, TrialPruned
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.records.result_cases import a_result
from timm_ktg.recipe.recipe import Recipe, check_section, save_recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.records.run_directory import RunDirectory
from timm_ktg.records.sample import Sample
from timm_ktg.search.controls import best_and_controls
from timm_ktg.search.journal import JOURNAL
from timm_ktg.search.looks import Looks
from timm_ktg.search.methods import build_method
from timm_ktg.search.objective import GraphObjective
from timm_ktg.search.processes import Log, Report
from timm_ktg.search.pruning import build_pruner
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.result import Result, spent
from timm_ktg.search.sampler import GraphSampler
from timm_ktg.search.space import build_choices
from timm_ktg.search.study import open_study
from timm_ktg.search.tracking import StudyTracking, WandbRunIds
from timm_ktg.search.trials import Attributes, note
from timm_ktg.train.metrics import TrainingError

MODELS = ["resnet8_cifar", "resnet14_cifar", "wrn16_2_cifar"]
FAILURE = "The loss of node <target> is not finite at update 7, on label->target."


def search_recipe(trials: int, epochs: int = 40, **search: Any) -> SearchRecipe:
    values = {"nodes": [2, 3], "target_model": MODELS[0], "models": MODELS, "trials": trials}
    return check_section(
        SearchRecipe,
        {
            "search": {**values, **search},
            "data": {"dataset": "digits", "holdout": 400},
            "train": {"epochs": epochs},
        },
    )


class MadeUpProcesses:
    """Reports figures that depend on the graph: `correct` from an auxiliary helps, most of all."""

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.spent: Attributes = {"epochs": 0}
        self.trials = 0

    def trial(self, recipe: Recipe, rungs: tuple[int, ...], *, report: Report, log: Log) -> float:
        self.trials += 1
        epochs = recipe.train.epochs
        level = 60 + 20 * random.Random(self.trials).random() + _merit(recipe)
        value = 0.0
        for epoch in range(1, epochs + 1):
            self.spent = _spent(recipe, epoch)
            if self.trials % self.failing == 3 and epoch > 1:
                raise TrainingError(FAILURE)
            noise = random.Random(f"{self.trials} {epoch}").gauss(0, 2)
            value = round(level * (1 - 0.6 / epoch) + noise / epoch, 2)
            if epoch in rungs and report(epoch, value, epoch == epochs):
                raise TrialPruned
        return value


def _spent(recipe: Recipe, epoch: int) -> Attributes:
    """As if every model cost by its place in the list, and the target might be an ensemble."""
    costs = [MODELS.index(node.model) + 1 for node in recipe.graph.nodes.values() if node.model]
    units = {"training_flops": 10**10 * epoch, "inference_flops": 10**7, "parameters": 10**5}
    return {"epochs": epoch, "cost": {name: unit * sum(costs) for name, unit in units.items()}}


def _merit(recipe: Recipe) -> float:
    sources = recipe.graph.nodes["target"].learns_from
    return sum(6.0 for source, edge in sources.items() if edge.gate == "correct") + (
        3.0 if any(node.model == MODELS[2] for node in recipe.graph.nodes.values()) else 0.0
    )


def make_study(folder: Path, trials: int, failing: int = 29, name: str = "made-up") -> Study:
    """Make the directory of a search that has found its best graphs."""
    recipe = search_recipe(trials)
    study = _searched(recipe, folder, failing, name)
    write_study(folder, recipe, study)
    choices = build_choices(recipe.search)
    rows = best_and_controls(study, choices, recipe, {MODELS[0]: 71.5})
    draw = random.Random(0)
    samples = {
        row.name: Sample(tuple(round(72 + index + draw.gauss(0, 0.5), 2) for _ in range(5)))
        for index, row in enumerate(reversed(rows))
    }
    looks = Looks((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 1)
    result = Result(rows, samples, spent(study, recipe.train.epochs), looks, images=10_000)
    (folder / "result.json").write_text(json.dumps(result.as_json()))
    return study


def write_study(folder: Path, recipe: SearchRecipe, study: Study) -> None:
    """Write a study's journal and recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "search.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)  # 2 ms each, and only needed if the power fails
        journal = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        optuna.copy_study(
            from_study_name=study.study_name, from_storage=study._storage, to_storage=journal
        )


def _searched(recipe: SearchRecipe, folder: Path, failing: int, name: str) -> Study:
    choices = build_choices(recipe.search)
    sampler = GraphSampler(choices, "random", 0, unique=True)
    study = open_study(name, InMemoryStorage(), sampler, build_pruner(recipe.search), {})
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    weights.write_text("")
    processes: Any = MadeUpProcesses(failing)
    builder = RecipeBuilder(recipe, lambda teacher: weights, seed=0)
    tracking = StudyTracking(recipe.tracking, WandbRunIds(name, "id", None), choices, folder)
    method = build_method(recipe)
    objective = GraphObjective(builder, choices, processes, tracking, method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)  # 0.4 s after each trial, with torch imported
        method.run(study, objective, (TrainingError,))
    trial = study.ask()  # as where two workers draw the same graph at the same time
    seen = study.trials[0].user_attrs["graph"]
    note(trial, graph=seen, duplicate=seen)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return study


def write_run(folder: Path, epochs: int = 5, done: bool = True, shift: float = 0.0) -> Path:
    """Write the directory of a run of two nodes, as `timm_ktg.train` leaves it."""
    folder.mkdir(parents=True)
    nodes = {
        "a": {"model": MODELS[0], "learns_from": {"label": "through", "b": "correct"}},
        "b": {"model": MODELS[1], "checkpoint_path": "/elsewhere/b.safetensors"},
    }
    recipe = {"graph": {"target": "a", "nodes": nodes}, "train": {"epochs": epochs}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {
            **{"epoch": epoch, "lr": 0.1, "seconds": 1.0, "train/loss/a": 1 / epoch},
            **{f"train/{what}/{edge}": 0.5 for what in ("loss", "weight") for edge in EDGES},
            **{f"{split}/top1/{n}": 90 - 9 / epoch + shift for split in SPLITS for n in nodes},
        }
        for epoch in range(1, epochs + 1 if done else epochs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text if done else text + '{"epoch": 5, "lr"')
    if done:
        top1 = dict.fromkeys(nodes, 88.0 + shift)
        RunDirectory(folder).write_result(a_result(top1, epochs=epochs))
    return folder


EDGES, SPLITS = ("label->a", "b->a"), ("train", "val")


class Browser:
    """A headless Chromium that records its console messages and requests."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"user-data-dir={folder}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=str(CHROMEDRIVER))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, page: Path, width: int = 1280, dark: bool = False) -> None:
        self.resize(width)
        self.theme(dark)
        self.driver.get(page.as_uri())

    def resize(self, width: int) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def theme(self, dark: bool, media: str = "") -> None:
        value = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        emulated = {"features": [value], "media": media}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> Any:
        """Return a script's result, as soon as there is one."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(script))

    def show(self, plot: str) -> None:
        """Scroll to a figure, which must be seen."""
        shown = f"document.querySelector('#{plot} .plot:not([hidden]) > svg')"
        self.run(f"{shown}.scrollIntoView({{block: 'center'}})")
        assert self.run(f"return {shown}.getBoundingClientRect().height") > 50

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        event = {"type": "mouseMoved", "x": x, "y": y}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def hover(self, plot: str, index: int) -> str:
        """Move the mouse to a point of a figure, and return what is said there."""
        self.show(plot)
        x, y = self.run(PLACE, plot, index)
        self.move(x + 1, y)
        note = f"document.querySelector('#{plot} .plot:not([hidden]) .note')"
        return str(self.wait(f"return !{note}.hidden && {note}.textContent"))

    def cells(self, column: int) -> list[str]:
        """Return a column of the table as it is shown."""
        picked = f"document.querySelectorAll('#trials tbody td:nth-child({column})')"
        found: list[str] = self.run(f"return [...{picked}].map((cell) => cell.textContent)")
        return found

    def fill(self, label: str, text: str) -> None:
        """Write into a field of the table."""
        script = "const f = document.querySelector(arguments[0]); f.value = arguments[1];"
        script += "f.dispatchEvent(new Event('input'))"
        self.run(script, f'[aria-label="{label}"]', text)

    def said(self) -> list[str]:
        """Return the console messages since the last call."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Return the requests since the last call, except for the browser's own first tab."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        sent = [e["message"] for e in events]
        urls = {e["params"]["request"]["url"] for e in sent if e["method"] == REQUEST}
        return {url for url in urls if not url.startswith("chrome:")}


PLACE = """
const plot = document.querySelector(`#${arguments[0]} .plot:not([hidden])`);
const [x, y] = JSON.parse(plot.querySelector("script").textContent)[arguments[1]];
const place = new DOMPoint(x, y).matrixTransform(plot.querySelector("svg").getScreenCTM());
return [place.x, place.y];
"""
REQUEST = "Network.requestWillBeSent"
CHROMIUM, CHROMEDRIVER = which("chromium"), which("chromedriver")
FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="there is no chromium and chromedriver here"
)
