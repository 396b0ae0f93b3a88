"""What the stages of a search share: the search, its study, and where its work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from optuna import Study
from optuna.storages import BaseStorage

from ..recipe.search_config import SearchRecipe
from ..train.metrics import TrainingError
from .jobs import Jobs
from .storage import open_artifacts
from .team import Team
from .weights import NoWeightsError, SharedWeights

# What fails a trial and not the worker.
CATCH: tuple[type[Exception], ...] = (TrainingError, NoWeightsError)
OUT_OF_MEMORY: tuple[type[Exception], ...] = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Site:
    """A search at one worker.

    Args:
        recipe: The search's recipe.
        directory: Where all that this worker writes lies.
        team: Trains.
        study: The study.
        storage: Where the study is kept.
        identity: What must be the same for all workers of the study.
    """

    recipe: SearchRecipe
    directory: Path
    team: Team
    study: Study
    storage: BaseStorage
    identity: Mapping[str, Any]

    @property
    def catch(self) -> tuple[type[Exception], ...]:
        """What fails a trial and not the worker; of several processes one may be out of memory."""
        return CATCH if PartialState().num_processes > 1 else (*CATCH, *OUT_OF_MEMORY)

    def jobs(self, what: str, names: Sequence[str]) -> Jobs:
        """Return jobs that the study's workers share.

        Args:
            what: What they are for, for each purpose once.
            names: A name for each.
        """
        return Jobs(f"{self.study.study_name}/{what}", self.storage, names, self.identity)

    def weights(self, models: Sequence[str], what: str, folder: str) -> SharedWeights:
        """Return the weights of models, those that the recipe does not give still to be trained.

        Args:
            models: The models.
            what: What they are for, for each purpose once.
            folder: Where in the directory this worker keeps its copies.
        """
        search = self.recipe.search
        missing = [model for model in models if model not in search.weights]
        jobs = self.jobs(what, missing) if missing else None
        store = open_artifacts(search, self.directory)
        return SharedWeights(jobs, store, self.directory / folder, search.weights)


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)
