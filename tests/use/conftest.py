"""A finished run, to use."""

from pathlib import Path

import pytest

from tests.recipe_cases import Values, recipe_values
from tests.training_cases import train_run

NODES: Values = {
    "a": {
        "model": "resnet8_cifar",
        "model_kwargs": {"drop_rate": 0.1},
        "learns_from": {"label": "through", "b": "through"},
    },
    "b": {"model": "resnet14_cifar", "learns_from": {"label": "through"}},
    "crowd": {"ensemble": ["a", "b"], "combine": "probabilities"},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an ensemble of two small nets."""
    values = recipe_values(NODES, graph={"target": "crowd"}, lr=0.1)
    return train_run(tmp_path_factory.mktemp("use") / "run", values)
