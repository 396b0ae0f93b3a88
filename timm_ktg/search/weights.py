"""Weights of frozen nodes: each teacher is trained on the labels alone, once for all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna import Trial
from optuna.artifacts import download_artifact, upload_artifact
from optuna.artifacts._protocol import ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from ..errors import StorageError
from ..recipe.search_problems import PRETRAINED
from ..records.files import replace_whole
from .jobs import Jobs
from .study import say
from .teachers import Teacher
from .trials import note

# Trains a teacher on the labels alone, leaves its weights in a file, and returns its top-1 in %.
Train = Callable[[Teacher, Path], float]


class NoWeightsError(RuntimeError):
    """A frozen node has no weights because their training failed."""


def file_name(model: str) -> str:
    """Return a model's name in a form that can be part of a file's."""
    return model.replace("/", "_").replace(":", "_")


class SharedWeights:
    """The weights of teachers, each trained by the first worker that is free.

    Args:
        teachers: The teachers to train.
        jobs: A job for each of them, by what it is called; None: all weights are given.
        store: Where workers share files.
        folder: Where this worker keeps its copies.
        given: Files that the user has, or `pretrained`, by model: the first is teacher 1, and so
            on.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        jobs: Jobs | None,
        store: ArtifactStore,
        folder: Path,
        given: Mapping[str, Sequence[str]],
    ) -> None:
        self.teachers = {str(teacher): teacher for teacher in teachers}
        self.jobs, self.store, self.folder, self.given = jobs, store, folder, dict(given)

    def train(self, train: Train, catch: tuple[type[Exception], ...]) -> None:
        """Train what is missing, here or by other workers."""
        if self.jobs is None:
            return

        def do(name: str, trial: Trial) -> float:
            say(f"Training {name} on the labels alone.")
            with TemporaryDirectory() as folder:
                path = Path(folder, "weights.safetensors")
                value = train(self.teachers[name], path)
                note(trial, digest=sha256(path.read_bytes()).hexdigest()[:16])
                artifact = upload_artifact(
                    artifact_store=self.store, file_path=str(path), study_or_trial=trial
                )
            note(trial, artifact=artifact)
            return value

        self.jobs.work(do, catch)

    def path(self, teacher: Teacher) -> Path | None:
        """Return a file of a teacher's weights, named by what it holds; None: they are timm's.

        So the recipes of final runs stay the same when their teachers come from another job.

        Raises:
            NoWeightsError: There are none because their training failed.
            StorageError: The folder of artifacts lacks them.
        """
        given = self.given.get(teacher.model, ())
        if teacher.number <= len(given):
            chosen = given[teacher.number - 1]
            return None if chosen == PRETRAINED else Path(chosen)
        assert self.jobs is not None  # there is a job for every teacher that is not given
        name, done = str(teacher), self.jobs.done()
        if name not in done:
            why = self.jobs.failed()[name]
            raise NoWeightsError(f"A frozen node needs the weights of {name}. Found none: {why}.")
        attributes = done[name].attributes
        path = self.folder / f"{file_name(teacher.model)}-{attributes['digest']}.safetensors"
        if path.is_file():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with replace_whole(path) as partial:
                download_artifact(
                    artifact_store=self.store,
                    artifact_id=attributes["artifact"],
                    file_path=str(partial),
                )
        except ArtifactNotFound as error:
            raise StorageError(
                f"search.artifacts: should hold the weights of {name}. Found none. All workers "
                "share this folder, and need it until the search is done."
            ) from error
        return path

    def value(self, teacher: Teacher) -> float | None:
        """Return the top-1 in percent of a teacher on the validation images, if it was trained."""
        trial = self.jobs.done().get(str(teacher)) if self.jobs else None
        return None if trial is None else trial.value
