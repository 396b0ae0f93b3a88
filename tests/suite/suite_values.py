"""A suite of tiny nets, and rows of a table that were never trained."""

import copy
from pathlib import Path
from typing import Any

import yaml

from tests.recipe_cases import Values, recipe_values
from timm_ktg.recipe.suite_config import SuiteConfig, load_suite
from timm_ktg.suite.table import Run

METHODS: Values = {
    "alone": {
        "title": "labels alone",
        "graph": {
            "target": "a",
            "nodes": {"a": {"model": "student", "learns_from": {"label": "through"}}},
        },
    },
    "teacher": {
        "own_seed": True,
        "graph": {
            "target": "a",
            "nodes": {"a": {"model": "student", "learns_from": {"label": "through"}}},
        },
    },
    "kd": {
        "weights": {"t": "teacher"},
        "graph": {
            "target": "a",
            "nodes": {
                "a": {"model": "student", "learns_from": {"label": "through", "t": "through"}},
                "t": {"model": "student"},
            },
        },
    },
}


def suite_values(**changes: Any) -> Values:
    recipe = recipe_values(epochs=1)
    dataset = {
        "models": {"student": "ktg_tiny"},
        "seeds": [0, 1, 2],
        "data": recipe["data"],
        "train": recipe["train"],
    }
    return {
        "bases": ["alone", "kd"],
        "datasets": {"digits": dataset},
        "methods": copy.deepcopy(METHODS),
        **changes,
    }


def write_suite(path: Path, values: Values) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def suite_of(path: Path, **changes: Any) -> SuiteConfig:
    return load_suite(write_suite(path / "s.yml", suite_values(**changes)))


def run_of(suite: SuiteConfig, method: str, seed: int, top1: float, **changes: Any) -> Run:
    values = {
        "dataset": "digits",
        "method": method,
        "seed": seed,
        "test_top1": top1,
        "val_top1": top1 - 1,
        "test_images": 10_000,
        "epochs": 1,
        "training_mflops": {"alone": 10, "teacher": 20}.get(method, 15),
        "inference_mflops": 1.0,
        "parameters": 1,
        "seconds": 1.0,
        "device": "cpu",
        "commit": "abc",
        "python": "3",
        "torch": "2",
        "timm": "1",
        "recipe": suite.digest("digits", method),
        **changes,
    }
    return Run.model_validate(values)
