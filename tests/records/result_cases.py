"""Results of runs, as if they had been trained."""

from collections.abc import Mapping
from typing import Any

from timm_ktg.records.result import Accuracy, DataFacts, RunResult


def a_result(top1: Mapping[str, float], **others: Any) -> RunResult:
    """Return the result of a run by its nodes' top-1, the target first."""
    fields: dict[str, Any] = {
        "target": next(iter(top1)),
        "split": "test",
        "nodes": {name: Accuracy(value, 99.0) for name, value in top1.items()},
        "seed": 0,
        "epochs": 2,
        "data": DataFacts("0123abcd", (0.5, 0.25, 0.5), (0.1, 0.2, 0.3)),
        "processes": 1,
        "device": "cpu",
        "python": "3.12.0",
        "packages": {"torch": "2.6.0", "timm": "1.0.31"},
        "training_seconds": 5.0,
        "wall_seconds": 6.5,
    }
    return RunResult(**{**fields, **others})
