"""Weights of frozen nodes: each model is trained on the labels alone, once for all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna import Trial
from optuna.artifacts import download_artifact, upload_artifact
from optuna.artifacts._protocol import ArtifactStore

from ..records.files import replace_whole
from .jobs import Jobs
from .study import say
from .trials import note

# Trains a model on the labels alone, leaves its weights in a file, and returns its top-1 in %.
Train = Callable[[str, Path], float]


class NoWeightsError(RuntimeError):
    """A frozen node has no weights because their training failed."""


def file_name(model: str) -> str:
    """Return a model's name in a form that can be part of a file's."""
    return model.replace("/", "_").replace(":", "_")


class SharedWeights:
    """The weights of the candidate models, each trained by the first worker that is free.

    Args:
        jobs: A job for every model, by its name; None: all weights are given.
        store: Where workers share files.
        folder: Where this worker keeps its copies.
        given: Files that the user has, by model.
    """

    def __init__(
        self, jobs: Jobs | None, store: ArtifactStore, folder: Path, given: Mapping[str, str]
    ) -> None:
        self.jobs, self.store, self.folder, self.given = jobs, store, folder, dict(given)

    def train(self, train: Train, catch: tuple[type[Exception], ...]) -> None:
        """Train what is missing, here or by other workers."""
        if self.jobs is None:
            return

        def do(model: str, trial: Trial) -> float:
            say(f"Training {model} on the labels alone.")
            with TemporaryDirectory() as folder:
                path = Path(folder, "weights.safetensors")
                value = train(model, path)
                note(trial, digest=sha256(path.read_bytes()).hexdigest()[:16])
                artifact = upload_artifact(
                    artifact_store=self.store, file_path=str(path), study_or_trial=trial
                )
            note(trial, artifact=artifact)
            return value

        self.jobs.work(do, catch)

    def path(self, model: str) -> Path:
        """Return a file of a model's weights, named by what it holds.

        So the recipes of final runs stay the same when their teachers come from another job.

        Raises:
            NoWeightsError: There are none because their training failed.
        """
        if model in self.given:
            return Path(self.given[model])
        assert self.jobs is not None  # there is a job for every model that is not given
        done = self.jobs.done()
        if model not in done:
            why = self.jobs.failed()[model]
            raise NoWeightsError(f"A frozen {model} needs weights, and there are none: {why}.")
        attributes = done[model].attributes
        path = self.folder / f"{file_name(model)}-{attributes['digest']}.safetensors"
        if path.is_file():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_whole(path) as partial:
            download_artifact(
                artifact_store=self.store,
                artifact_id=attributes["artifact"],
                file_path=str(partial),
            )
        return path

    def value(self, model: str) -> float | None:
        """Return the top-1 in percent of a model trained on the labels alone, if it was."""
        trial = self.jobs.done().get(model) if self.jobs else None
        return None if trial is None else trial.value
