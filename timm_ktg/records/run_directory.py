"""The directory of a run: where its files are, and what may be overwritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ..errors import RecipeError, located, one_line
from .files import write_whole, writing
from .metrics import EPOCH, Metrics
from .result import RunResult

RUNS = Path("runs")

# The loader processes of a killed run notice within 5 s that they are alone. Until then they hold
# its lock with old versions of filelock (3.12 was tried; with 4.3 they do not).
_PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; running it again repeats the run."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics, a line of JSON per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The result, written when the run is complete."""
        return self.path / "summary.json"

    @property
    def nodes(self) -> Path:
        """The weights of every node, as timm reads them."""
        return self.path / "nodes"

    @property
    def card(self) -> Path:
        """The card of what was trained: the last file that a run writes."""
        return self.nodes / "README.md"

    @property
    def best(self) -> RunDirectory:
        """The run as it was after its best epoch, if its recipe asks for it."""
        return RunDirectory(self.path / "best")

    @property
    def teachers(self) -> Path:
        """The runs of the teachers that are trained first, each in a folder of its node's name."""
        return self.path / "teachers"

    def teacher(self, node: str) -> RunDirectory:
        """The run of such a teacher."""
        return RunDirectory(self.teachers / node)

    @property
    def seeds(self) -> Path:
        """The result of several seeds; their runs are in `seed-<n>` beside it."""
        return self.path / "seeds.json"

    @property
    def graph(self) -> Path:
        """The graph as a picture, with results when there are any."""
        return self.path / "graph.svg"

    @property
    def curves(self) -> Path:
        """The losses, top-1 and shares passed of every epoch, as a picture."""
        return self.path / "curves.png"

    @property
    def checkpoint(self) -> Path:
        """The states from which the run can be resumed."""
        return self.path / "checkpoint"

    @property
    def wandb_id(self) -> Path:
        """The run's id in Weights & Biases."""
        return self.path / "wandb.json"

    @property
    def wandb(self) -> Path:
        """The files of Weights & Biases; `wandb sync` uploads an offline run from them."""
        return self.path / "wandb"

    @property
    def trackers(self) -> Path:
        """The files of other trackers, each in a folder of its name."""
        return self.path / "trackers"

    @property
    def report(self) -> Path:
        """The page that `timm_ktg.review report` makes."""
        return self.path / "report.html"

    @property
    def validation(self) -> Path:
        """Where `timm_ktg.validate` may put its tables."""
        return self.path / "validation"

    @property
    def content(self) -> tuple[Path, ...]:
        """Everything that a run may write."""
        files = (self.recipe, self.metrics, self.summary, self.seeds, self.nodes, self.checkpoint)
        shown = (self.graph, self.curves, self.report, self.validation)
        tracked = (self.best.path, self.teachers, self.wandb_id, self.wandb, self.trackers)
        return (*files, *shown, *tracked, *self.path.glob("seed-*"), *self.leftovers)

    @property
    def lock(self) -> Path:
        """The file that a command holds locked while it trains into this directory."""
        return self.path / ".lock"

    @property
    def leftovers(self) -> tuple[Path, ...]:
        """Files that were being written when a process was killed."""
        return tuple(self.path.glob(".*.partial"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands from training into this directory as long as the block runs.

        The kernel ends the lock of a killed process.

        Raises:
            RecipeError: Another command is training into it.
            StorageError: Nothing can be written there.
        """
        lock = FileLock(self.lock, _PATIENCE)
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire()
                except Timeout:
                    said = f"{self.path} is in use by another command"
                    problem = f"output-dir: {said}. If it is not, remove {self.lock}."
                    raise RecipeError([problem]) from None
            yield
        finally:
            lock.release()

    def clear(self, overwrite: bool = False) -> None:
        """Remove what an earlier run left, before a new one is written. Call it while it is held.

        Args:
            overwrite: Whether to remove a run.

        Raises:
            RecipeError: There is something else, or a run that may not be removed, or a command
                trains one of its seeds or teachers.
            StorageError: It cannot be removed.
        """
        check_output_dir(self.path, overwrite)
        with ExitStack() as held:
            for lock in self.path.rglob(self.lock.name):  # those of its seeds and teachers, too
                if lock != self.lock:
                    held.enter_context(RunDirectory(lock.parent).held())
            for path in reversed(self.content):  # recipe.yaml last: without it the rest is no run
                with writing(path):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that no file is a folder, and no folder a file.

        Raises:
            RecipeError: One is; lists all of them.
        """
        files = (self.recipe, self.metrics, self.summary, self.seeds, self.wandb_id)
        problems = [f"{path}: should be a file. Found a folder." for path in files if path.is_dir()]
        for path in (self.checkpoint, self.nodes, self.best.path):
            if path.exists() and not path.is_dir():
                problems.append(f"{path}: should be a folder. Found a file.")
        if problems:
            raise RecipeError(problems)

    def log(self, metrics: Metrics) -> None:
        """Append the line of an epoch."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def forget_after(self, epoch: int) -> list[int]:
        """Drop the lines of later epochs, and lines that are damaged or only half written.

        Returns:
            The epochs up to this one whose line is lost or damaged.

        Raises:
            StorageError: metrics.jsonl cannot be written.
        """
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        lines = {_epoch_of(line): line for line in content.splitlines()}
        kept = {number: lines[number] for number in range(1, epoch + 1) if number in lines}
        text = b"".join(line + b"\n" for line in kept.values())
        if text != content:
            write_whole(self.metrics, text.decode())
        return [number for number in range(1, epoch + 1) if number not in kept]

    def write_result(self, result: RunResult) -> None:
        """Write summary.json."""
        write_whole(self.summary, json.dumps(result.as_json(), indent=2) + "\n")


def create_run_directory(
    name: str, output_dir: Path | None, overwrite: bool = False
) -> RunDirectory:
    """Create the directory of a new run; a run that is there stays until `clear`.

    Args:
        name: Name of the run.
        output_dir: The directory; None: `runs/<name>`, or the first free one of `-2`, `-3`, ...
        overwrite: Whether to replace a run that is there.

    Raises:
        RecipeError: The directory is not empty and may not be replaced, or cannot be created.
    """
    if output_dir is None:
        with located(f"output-dir: {RUNS / name} cannot be made"):
            return RunDirectory(_next_free(RUNS / name))
    check_output_dir(output_dir, overwrite)
    with located(f"output-dir: {output_dir} cannot be made"):
        output_dir.mkdir(parents=True, exist_ok=True)
    return RunDirectory(output_dir)


def check_output_dir(output_dir: Path, overwrite: bool) -> None:
    """Check that a new run can be written into a directory.

    Args:
        output_dir: The directory; it need not exist.
        overwrite: Whether a run that is there may be replaced.

    Raises:
        RecipeError: The directory holds something else, or a run that may not be replaced.
    """
    if not output_dir.exists():
        return
    run = RunDirectory(output_dir)
    found = list(output_dir.iterdir()) if output_dir.is_dir() else [output_dir]
    found = [path for path in found if path not in (run.lock, *run.leftovers)]
    if found == [run.seeds]:  # a command was killed before it wrote the recipe
        return
    if found and not (run.recipe.is_file() and all(path in run.content for path in found)):
        raise RecipeError([f"output-dir: {output_dir} is there and is no run; choose another."])
    if found and not overwrite:
        raise RecipeError(
            [
                f"output-dir: {output_dir} holds a run. Go on with it by --resume {output_dir}, "
                "replace it by --overwrite, or choose another directory."
            ]
        )


def write_seeds(path: Path, seeds: Sequence[int]) -> None:
    """Write down the seeds that a directory is for, before the first is trained."""
    write_whole(RunDirectory(path).seeds, json.dumps({"seeds": list(seeds)}) + "\n")


def read_seeds(path: Path) -> tuple[int, ...]:
    """Return the seeds that a directory is for; none if it is for a single run.

    Raises:
        RecipeError: seeds.json does not name the seeds.
    """
    file = RunDirectory(path).seeds
    if not file.exists():
        return ()
    try:
        seeds = TypeAdapter(_Seeds).validate_json(file.read_bytes(), strict=True).seeds
    except (OSError, ValueError) as error:
        raise RecipeError([f"resume: {file} should name the seeds. {one_line(error)}"]) from None
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        said = "should name seeds of 0 or more, each only once"
        raise RecipeError([f"resume: {file} {said}. Found {list(seeds)}."])
    return tuple(seeds)


@dataclass(frozen=True)
class _Seeds:
    seeds: list[int]


def _epoch_of(line: bytes) -> int | None:
    """Return the epoch of a line of metrics.jsonl; None if the line is damaged."""
    try:
        epoch = TypeAdapter(dict[str, Any]).validate_json(line).get(EPOCH)
    except ValidationError:
        return None
    return epoch if isinstance(epoch, int) else None


def _next_free(path: Path) -> Path:
    number, candidate = 1, path
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
