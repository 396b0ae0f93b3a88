"""Searches that take seconds: tiny nets, some of the bundled digits, four epochs."""

import copy
import json
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from timm.models import register_model
from torch import nn

from tests.training_cases import VAL, TinyNet, Values, reset_accelerate, small_digits
from timm_ktg.search.__main__ import main


@register_model
def ktg_tiny_wide(pretrained: bool = False, num_classes: int = 10, **_: Any) -> nn.Module:
    return TinyNet(num_classes, 12, 0.0, False)


SEARCH: Values = {
    "nodes": 2,
    "target_model": "ktg_tiny",
    "models": ["ktg_tiny", "ktg_tiny_wide"],
    "gates": ["through", "cutoff", "linear"],
    "trials": 6,
    "final_seeds": [0, 1],
}


def search_values(**search: Any) -> dict[str, Values]:
    return {
        "search": {**copy.deepcopy(SEARCH), **search},
        "data": {"dataset": small_digits(), "holdout": VAL, "pad": 1},
        "train": {"epochs": 4, "batch_size": 64, "lr": 0.05, "sched": "cosine"},
    }


def run_search(*argv: str | Path) -> int:
    reset_accelerate()
    return main([str(argument) for argument in argv])


def study_in(directory: Path, name: str) -> Study:
    storage = JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)


def result_in(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found
