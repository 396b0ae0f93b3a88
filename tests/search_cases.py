"""Searches that take seconds: tiny nets, some of the bundled digits, four epochs."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from timm.models import register_model
from torch import nn

from tests.nets import ktg_tiny
from tests.recipe_cases import Values, recipe_values, write_recipe
from tests.training_cases import register_cases, reset_accelerate
from timm_ktg.graph import gates, losses
from timm_ktg.search.__main__ import main
from timm_ktg.search.tracking import make_run_ids


@register_model
def ktg_tiny_wide(pretrained: bool = False, num_classes: int = 10, **_: Any) -> nn.Module:
    return ktg_tiny(num_classes=num_classes, width=12)


SEARCH: Values = {
    "nodes": 2,
    "target_model": "ktg_tiny",
    "models": ["ktg_tiny", "ktg_tiny_wide"],
    "gates": ["through", "cutoff", "linear"],
    "trials": 6,
    "final_seeds": [0, 1],
}


def search_values(**search: Any) -> dict[str, Values]:
    values = recipe_values(epochs=4)
    del values["graph"]
    return {"search": {**copy.deepcopy(SEARCH), **search}, **values}


def run_search(*argv: str | Path) -> int:
    reset_accelerate()
    return main([str(argument) for argument in argv])


def study_in(directory: Path, name: str) -> Study:
    storage = JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)


def result_in(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found


def make_shown_search(folder: Path, **search: Any) -> Path:
    """Run a search with trials of every kind, shown offline in W&B, as part of a sweep."""
    infinite = {"gate": "breaking", "gate_kwargs": {"factor": "inf"}}
    drawn = ["through", "linear", infinite]
    values = {
        **search_values(gates=drawn, trials=8, frozen=True, **search),
        "tracking": {"wandb": True, "mode": "offline", "project": "pets"},
    }
    own = gates.registry.isolated(), losses.registry.isolated()
    with own[0], own[1], pytest.MonkeyPatch.context() as patch:
        register_cases()
        # The sweep is made once, online; here the study is given one before its first trial.
        patch.setattr("timm_ktg.search.worker.make_run_ids", partial(make_run_ids, sweep="sweep1"))
        recipe = write_recipe(folder / "s.yaml", values)
        assert run_search(recipe, "--output-dir", folder / "out") == 0
    return folder / "out"
