"""What a suite trains: a run for each method, data set and seed, and where it goes."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import RecipeError
from ..recipe.recipe import Recipe
from ..recipe.suite_config import SuiteConfig
from ..records.metrics import top1_name
from ..records.reader import read_epochs, read_result
from ..records.run_directory import RunDirectory
from .table import Run

Key = tuple[str, str, int, str]  # data set, method, seed, digest of the recipe


@dataclass(frozen=True)
class Planned:
    """A run that a suite plans.

    Args:
        suite: The suite.
        dataset: Name of the data set.
        method: Name of the method.
        seed: The planned seed.
        runs: Folder of all runs.
    """

    suite: SuiteConfig
    dataset: str
    method: str
    seed: int
    runs: Path

    @property
    def name(self) -> str:
        """Data set, method and seed in a line."""
        return f"{self.dataset}, {self.method}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """Digest of what decides the training, but for the seed."""
        return self.suite.digest(self.dataset, self.method)

    @property
    def key(self) -> Key:
        """What tells its row from others."""
        return self.dataset, self.method, self.seed, self.digest

    @property
    def directory(self) -> RunDirectory:
        """Where the run goes."""
        folder = self.runs / self.dataset / f"{self.method}-{self.digest}"
        return RunDirectory(folder / f"seed-{self.seed}")

    @property
    def needs(self) -> tuple[Planned, ...]:
        """The runs whose targets' weights it needs."""
        methods = dict.fromkeys(self.suite.methods[self.method].weights.values())
        giver = self.suite.datasets[self.dataset].weights_from or self.dataset
        return tuple(Planned(self.suite, giver, each, self.seed, self.runs) for each in methods)

    @property
    def level(self) -> int:
        """How many runs must come before it, one after another."""
        return max((1 + each.level for each in self.needs), default=0)

    @property
    def weights(self) -> Path:
        """File of the target's weights, there once the run is complete."""
        target = self.suite.methods[self.method].graph["target"]
        return self.directory.nodes / f"{target}.safetensors"

    @property
    def recipe(self) -> Recipe:
        """The recipe, once the runs that it needs are complete.

        Raises:
            RecipeError: They are not.
        """
        for each in self.needs:
            if each.directory.summary.exists() and not each.weights.is_file():
                said = f"{each.weights} is gone. Remove {each.directory.path} to train it again."
                raise RecipeError([said])
        files = {each.method: each.weights for each in self.needs}
        return self.suite.recipe(self.dataset, self.method, self.seed, files)

    @property
    def commit_file(self) -> Path:
        """Names the commit that trained it, or went on with it last; see `current_commit`."""
        return self.directory.path.with_name(f".{self.directory.path.name}.commit")

    @property
    def failure_file(self) -> Path:
        """Says why its last training failed; there is none if it did not."""
        return self.directory.path.with_name(f".{self.directory.path.name}.failed")

    def row(self) -> Run | None:
        """Return the row of the run in the table; None if it is not complete.

        Raises:
            RecipeError: Its files cannot be read, or it was not tested on test images.
        """
        result = read_result(self.directory)
        if result is None:
            return None
        if result.split != "test" or result.images is None:
            raise RecipeError([f"{self.name}: should have test images. Found {result.split} only."])
        commit = result.packages["timm_ktg"]  # earlier versions wrote down no commit
        if self.commit_file.is_file():
            commit = self.commit_file.read_text(encoding="utf-8").strip()
        last, cost = read_epochs(self.directory)[-1], result.cost
        return Run(
            dataset=self.dataset,
            method=self.method,
            seed=self.seed,
            test_top1=result.target_accuracy.top1,
            val_top1=last.get(top1_name("val", result.target)),
            test_images=result.images,
            epochs=result.epochs,
            training_mflops=None if cost is None else round(cost.training_flops / 1e6, 3),
            inference_mflops=None if cost is None else round(cost.inference_flops / 1e6, 3),
            parameters=None if cost is None else cost.parameters,
            seconds=round(result.training_seconds, 1),
            device=result.device_name or result.device,
            commit=commit,
            python=result.python,
            torch=result.packages["torch"],
            timm=result.packages["timm"],
            recipe=self.digest,
        )


def plan(suite: SuiteConfig, dataset: str, seed: int, runs: Path) -> list[Planned]:
    """Return the runs of a data set and seed: first those that need no other, and so on."""
    every = [Planned(suite, dataset, each, seed, runs) for each in suite.methods_of(dataset)]
    return sorted(every, key=lambda run: run.level)


def left_to_train(
    planned: Sequence[Planned], known: Collection[Key], methods: Collection[str]
) -> list[Planned]:
    """Return the runs that the table lacks, and those whose weights they need, which come first.

    Args:
        planned: The runs of a data set and seed.
        known: Keys of the rows in the table.
        methods: Names of the methods to train; none: all.
    """
    left = [
        each
        for each in reversed(planned)
        if each.key not in known and (not methods or each.method in methods)
    ]
    wanted: dict[Key, Planned] = {}
    while left:
        each = left.pop()
        wanted[each.key] = each
        left += [need for need in each.needs if not need.weights.is_file()]
    return sorted(wanted.values(), key=lambda run: run.level)


def current_commit() -> str:
    """Return the commit of this package, with a + if files were changed; or its version."""
    package = Path(__file__).parents[1]
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != package.parent.resolve():
            return metadata.version("timm_ktg")  # installed inside some other repository
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _git(package, "rev-parse", "--short", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return metadata.version("timm_ktg")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
