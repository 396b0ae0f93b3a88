"""Fixtures for the tests of recipes, of the command line and of the main job in this process."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.recipe_cases import Refused, Values, write
from timm_ktg.graph import gates, losses
from timm_ktg.train.__main__ import main

from . import training_cases

# Trio, which comes with selenium, registers a generator there that hypothesis may warn about.
os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search that was shown in W&B, offline."""
    from .search_cases import make_shown_search

    return make_shown_search(tmp_path_factory.mktemp("shown"))


@pytest.fixture
def workplace(
    tmp_path: Path, datasets_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty working directory, off the network and out of the user's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", training_cases.USE_CPU)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", datasets_cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # With nets this small, extra threads only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def isolated_registries() -> Iterator[None]:
    """Forget, after every test, the gates and losses that it registers."""
    with gates.registry.isolated(), losses.registry.isolated():
        yield


@pytest.fixture(autouse=True)
def loud_loggers() -> None:
    """Warn as in a fresh process: searches and suites that ran in this one warn less."""
    for name in ("timm_ktg", "timm_ktg.graph"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def workbench() -> Iterator[None]:
    """Register the gates and losses of `training_cases`, and leave no state of accelerate."""
    training_cases.register_cases()
    training_cases.progress.clear()
    training_cases.calls["erratic"] = 0
    training_cases.reset_accelerate()
    yield
    training_cases.reset_accelerate()


@pytest.fixture
def refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a recipe that cannot run, and return the lines on the terminal."""

    def run(values: Values, *flags: str) -> list[str]:
        command = [write(values), *flags]
        capsys.readouterr()
        code = main(command)
        said = capsys.readouterr().err.splitlines()
        assert code == 2, said
        return said

    return run
