"""The runs of a suite as a table: a CSV with a row a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ..errors import RecipeError, located
from ..records.files import write_whole


class Run(BaseModel):
    """A row of the table: a training, and what came of it.

    Its fields are the columns. A column without a figure is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    method: str
    seed: int
    """The planned seed; a teacher's training uses another, derived from it."""
    test_top1: FiniteFloat
    """In percent, of the target after the last epoch, on the test images."""
    val_top1: float | None
    """The same on the validation images."""
    test_images: int
    epochs: int
    training_mflops: float | None
    """Of a training step, an image; without the teachers' own training."""
    inference_mflops: float | None
    """Of the target, an image."""
    parameters: int | None
    """Of the target."""
    seconds: float
    """Of training, beside whatever else the machine did."""
    device: str
    """Name of the hardware, or `cpu` and the like if that is not known."""
    commit: str
    """Of this package, with a + if files were changed; its version if it is no checkout."""
    python: str
    torch: str
    timm: str
    recipe: str
    """Digest of what decided the training, but for the seed."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What there should be one run of."""
        return self.dataset, self.method, self.seed


def read_table(path: Path) -> list[Run]:
    """Return the runs in a CSV; none if there is no file.

    Raises:
        RecipeError: A row cannot be read, or two are of the same training.
    """
    if not path.exists():
        return []
    runs: dict[tuple[str, str, int, str], Run] = {}
    with located(f"{path}: cannot be read"), path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                run = Run.model_validate({k: None if v == "" else v for k, v in row.items()})
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                said = f"{path}: line {number}, {where}: {first['msg']}."
                raise RecipeError([said]) from None
            if runs.setdefault((*run.key, run.recipe), run) is not run:
                raise RecipeError([f"{path}: line {number}: {_named(run)} is there twice."])
    return list(runs.values())


def add_runs(path: Path, new: Iterable[Run]) -> None:
    """Add runs to a CSV, sorted; those that it has stay as they are.

    Several processes may do so at once.

    Raises:
        RecipeError: The CSV cannot be read.
        StorageError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        runs = {(*run.key, run.recipe): run for run in (*new, *read_table(path))}
        text = io.StringIO()
        writer = csv.DictWriter(text, Run.model_fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs[key].model_dump() for key in sorted(runs))
        write_whole(path, text.getvalue())


def _named(run: Run) -> str:
    return f"{run.method} on {run.dataset}, seed {run.seed}"
