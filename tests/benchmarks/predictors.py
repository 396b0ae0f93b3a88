"""Which cheap trial predicts a whole training? From the tables of `recipes/evidence`.

    python -m tests.benchmarks.predictors [--plot FILE]

Every method of the suite is a graph. Its truth is the mean test top-1 of its whole trainings, those
of the seed that a cheap trial has left out, because both see the same images in the same order. The
cheap trials are judged by what a search sees, which is validation top-1 (for complete trainings
validation loss, too, as it is and calibrated; see `tests.benchmarks.calibrated`):

- an epoch of the whole schedule (pruning), and a curve fitted to the epochs up to there;
- a whole training on a shorter schedule, on the same with a fixed warm-up, or on fewer images;
- one whole training.

Shown for each: its cost in whole trainings; Spearman's rank correlation with the truth over all
graphs, and over the better half, as the mean over seeds with an interval by bootstrap over graphs;
and the regret of a search that spends all of a budget on such trials of randomly drawn graphs: how
far the truth of the graph with the best trial is behind that of the best graph there is.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit
from scipy.stats import spearmanr

from tests.benchmarks.ratios import ROOT
from timm_ktg.recipe.suite_config import SuiteConfig, load_suite
from timm_ktg.suite.results import Results, results_of
from timm_ktg.suite.table import Run, read_table

EVIDENCE = ROOT / "recipes" / "evidence"
CALIBRATED = EVIDENCE / "calibrated.csv"
WHOLE, EPOCHS = ("cifar100-mini", "cifar100-mini-sixth"), 40
READ_AT = (1, 2, 4, 5, 8, 10, 16, 20, 30)  # epochs of the whole schedule
FITTED_TO = (10, 20)
CHEAP = {  # data sets of the suite, and their costs in whole trainings
    "cifar100-mini-4": 4 / 40,
    "cifar100-mini-10": 10 / 40,
    "cifar100-mini-10-warm": 10 / 40,
    "cifar100-mini-quarter": 12 / 50,
    "cifar100-mini-20": 20 / 40,
}
BY_LOSS = ", by loss"
BY_CALIBRATED_LOSS = ", by calibrated loss"
BUDGETS = (2, 5, 10)  # whole trainings
ORDERS = 1_000
BOOTSTRAP = 2_000

Scores = Mapping[str, Mapping[int, float]]  # by graph and seed, in percent


@dataclass(frozen=True)
class Predictor:
    """A kind of cheap trial.

    Args:
        title: What it is.
        cost: Epochs times images, in those of a whole training.
        scores: What it says of every graph, by seed.
    """

    title: str
    cost: float
    scores: Scores

    @property
    def seeds(self) -> int:
        """Seeds that all graphs have a score of."""
        return len(set.intersection(*map(set, self.scores.values())))


@dataclass(frozen=True)
class Truth:
    """What whole trainings say.

    Args:
        tests: Test top-1 in percent by graph and seed, of two seeds at least.
        curves: Validation top-1 in percent by graph and seed, for every epoch from 1.
    """

    tests: Scores
    curves: Mapping[str, Mapping[int, Sequence[float]]]

    def of(self, graph: str, seed: int | None = None) -> float:
        """Return a graph's mean test top-1, without one of the seeds."""
        return statistics.mean(top1 for each, top1 in self.tests[graph].items() if each != seed)

    @property
    def graphs(self) -> list[str]:
        """All graphs, the best first."""
        return sorted(self.tests, key=self.of, reverse=True)


def load_truth(suite: SuiteConfig, rows: Sequence[Run]) -> Truth:
    """Return what the whole trainings of the suite's graphs say, teachers left out."""
    short = set(suite.methods_of("cifar100-mini-10"))
    tests: dict[str, dict[int, float]] = defaultdict(dict)
    curves: dict[str, dict[int, Sequence[float]]] = defaultdict(dict)
    for dataset in WHOLE:
        results = results_of(suite, dataset, rows)
        for name, runs in results.runs.items():
            if name not in short or suite.methods[name].own_seed:
                continue
            for seed, run in runs.items():
                if _log(results, run).exists():
                    tests[name][seed] = run.test_top1
                    curves[name][seed] = _curve(results, run)
    kept = [name for name, runs in tests.items() if len(runs) > 1]
    return Truth({name: tests[name] for name in kept}, {name: curves[name] for name in kept})


def predictors(suite: SuiteConfig, rows: Sequence[Run], truth: Truth) -> Iterator[Predictor]:
    """Yield the kinds of cheap trials that the tables have, the cheapest first within a kind."""
    for epoch in READ_AT:
        yield Predictor(
            f"epoch {epoch} of {EPOCHS}",
            epoch / EPOCHS,
            _over_curves(truth, itemgetter(epoch - 1)),
        )
    for epoch in FITTED_TO:
        yield Predictor(
            f"curve fitted to epochs 1 to {epoch}",
            epoch / EPOCHS,
            _over_curves(truth, partial(_fitted, epochs=epoch)),
        )
    for dataset, cost in CHEAP.items():
        results = results_of(suite, dataset, rows)
        of = {name: results.runs.get(name, {}) for name in truth.graphs}
        if all(of.values()):
            title = (suite.datasets[dataset].title or dataset).removeprefix("the same with ")
            yield Predictor(title, cost, {name: _validation(of[name]) for name in of})
            for by, score in ((BY_LOSS, _minus_loss), (BY_CALIBRATED_LOSS, _minus_calibrated)):
                scores = {name: score(results, of[name]) for name in of}
                if all(scores.values()):
                    yield Predictor(f"{title}{by}", cost, scores)
    yield Predictor("a whole training", 1.0, _over_curves(truth, itemgetter(-1)))


def correlation(
    predictor: Predictor, truth: Truth, graphs: Sequence[str]
) -> tuple[float, float, float]:
    """Return Spearman's correlation with the truth, and its 95 % interval over graphs."""
    seeds = sorted(set.intersection(*(set(predictor.scores[graph]) for graph in graphs)))
    said = np.array([[predictor.scores[graph][seed] for graph in graphs] for seed in seeds])
    true = np.array([[truth.of(graph, seed) for graph in graphs] for seed in seeds])

    def mean(chosen: np.ndarray) -> float:
        pairs = zip(said[:, chosen], true[:, chosen], strict=True)
        return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))

    random = np.random.default_rng(0)
    drawn = [random.integers(len(graphs), size=len(graphs)) for _ in range(BOOTSTRAP)]
    means = [mean(chosen) for chosen in drawn if len({*chosen}) > 2]
    low, high = np.nanquantile(means, [0.025, 0.975])
    return mean(np.arange(len(graphs))), float(low), float(high)


def regret(predictor: Predictor, truth: Truth, budget: float) -> float:
    """Return the mean regret, in percentage points, of a search by one kind of cheap trial.

    Args:
        predictor: The kind of trial.
        truth: What whole trainings say.
        budget: What the search may spend, in whole trainings.
    """
    count = min(len(truth.graphs), math.floor(budget / predictor.cost + 1e-9))
    random = np.random.default_rng(0)
    lost = []
    for _ in range(ORDERS):
        drawn = [str(each) for each in random.choice(truth.graphs, count, replace=False)]
        seeds = {graph: int(random.choice([*predictor.scores[graph]])) for graph in drawn}
        chosen = max(drawn, key=lambda each: predictor.scores[each][seeds[each]])
        best = max(truth.of(graph, seeds[chosen]) for graph in truth.graphs)
        lost.append(best - truth.of(chosen, seeds[chosen]))
    return statistics.mean(lost)


def _log(results: Results, run: Run) -> Path:
    name = f"{run.method}-{run.recipe}-seed-{run.seed}.jsonl.gz"
    return EVIDENCE / "logs" / results.dataset / name


def _curve(results: Results, run: Run, figure: str = "top1") -> list[float]:
    """Return the target's validation top-1, or another figure, wherever it was evaluated."""
    first, *epochs = map(json.loads, gzip.decompress(_log(results, run).read_bytes()).splitlines())
    name = f"val/{figure}/{first['recipe']['graph']['target']}"
    return [each[name] for each in epochs if name in each]


def _over_curves(truth: Truth, score: Callable[[Sequence[float]], float]) -> Scores:
    return {
        graph: {seed: score(curve) for seed, curve in curves.items()}
        for graph, curves in truth.curves.items()
    }


def _validation(runs: Mapping[int, Run]) -> dict[int, float]:
    return {seed: run.val_top1 for seed, run in runs.items() if run.val_top1 is not None}


def _minus_loss(results: Results, runs: Mapping[int, Run]) -> dict[int, float]:
    """Return minus the target's last validation loss by seed, where it was logged."""
    losses = {seed: _curve(results, run, "loss") for seed, run in runs.items()}
    return {seed: -each[-1] for seed, each in losses.items() if each}


def _minus_calibrated(_: Results, runs: Mapping[int, Run]) -> dict[int, float]:
    """Return minus the target's calibrated validation loss by seed, where it was measured."""
    losses = _calibrated()
    keys = {seed: (run.dataset, run.method, str(seed), run.recipe) for seed, run in runs.items()}
    return {seed: -losses[key] for seed, key in keys.items() if key in losses}


@cache
def _calibrated() -> dict[tuple[str, str, str, str], float]:
    with CALIBRATED.open(encoding="utf-8", newline="") as file:
        return {
            (row["dataset"], row["method"], row["seed"], row["recipe"]): float(row["val_loss"])
            for row in csv.DictReader(file)
        }


def _fitted(curve: Sequence[float], epochs: int) -> float:
    """Return what a power law through the first epochs says of the last one of all."""
    seen = curve[:epochs]
    start = (max(seen) + 5, max(seen), 0.5)
    bounds = ([0, 0, 0], [100, 200, 3])
    found, _ = curve_fit(_power, np.arange(1, epochs + 1), seen, start, bounds=bounds)
    return float(_power(EPOCHS, *found))


def _power(epoch: np.ndarray | float, end: float, scale: float, power: float) -> np.ndarray:
    return np.asarray(end - scale * np.asarray(epoch) ** -power)


def _table(found: Sequence[Predictor], truth: Truth) -> Iterator[str]:
    half = truth.graphs[: math.ceil(len(truth.graphs) / 2)]
    budgets = " | ".join(f"regret at {budget}" for budget in BUDGETS)
    yield f"| trial | cost | seeds | Spearman, all | Spearman, better half | {budgets} |"
    yield "|---" * (5 + len(BUDGETS)) + "|"
    for each in found:
        cells = [each.title, f"{each.cost:.3g}", f"{each.seeds}"]
        for graphs in (truth.graphs, half):
            mean, low, high = correlation(each, truth, graphs)
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
        cells += [f"{regret(each, truth, budget):.2f}" for budget in BUDGETS]
        yield f"| {' | '.join(cells)} |"


def _plot(path: Path, found: Sequence[Predictor], truth: Truth) -> None:
    """Draw the correlation over the cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="cost, in whole trainings", ylabel="Spearman with the truth")
    axes.set_xscale("log")
    axes.set_xticks(ticks := [0.025, 0.05, 0.1, 0.25, 0.5, 1], [f"{each:g}" for each in ticks])
    axes.minorticks_off()
    shown = [each for each in found if not each.title.endswith((BY_LOSS, BY_CALIBRATED_LOSS))]
    warm = [each for each in shown if "warm-up" in each.title]  # by loss: in the table
    complete = [e for e in found if e.title.startswith("complete") and "warm-up" not in e.title]
    kinds = {
        "an epoch of the whole schedule": [e for e in found if e.title.startswith("epoch ")],
        "a curve fitted to the epochs so far": [e for e in found if e.title.startswith("curve")],
        "a complete short schedule": [e for e in complete if e in shown],
        "the same, with a warm-up": warm,
        "a complete short schedule, by loss": [e for e in complete if e.title.endswith(BY_LOSS)],
        "a complete short schedule, by calibrated loss": [
            e for e in complete if e.title.endswith(BY_CALIBRATED_LOSS)
        ],
        "a quarter of the images": [e for e in shown if "quarter" in e.title],
        "a whole training": [e for e in found if e.cost == 1],
    }
    for shift, (kind, members) in enumerate(kinds.items()):
        if not members:
            continue
        values = np.array([correlation(each, truth, truth.graphs) for each in members])
        means, lows, highs = values.T
        costs = [each.cost * 1.035 ** (shift - len(kinds) // 2) for each in members]
        errors = [means - lows, highs - means]
        axes.errorbar(costs, means, errors, fmt="o", capsize=3, label=kind)
    axes.axhline(0, color="gray", linewidth=0.5)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def main() -> None:
    """Print the table, and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, help="write a picture here")
    arguments = parser.parse_args()
    suite, rows = load_suite(EVIDENCE / "suite.yml"), read_table(EVIDENCE / "results.csv")
    truth = load_truth(suite, rows)
    found = list(predictors(suite, rows, truth))
    seeds = sum(map(len, truth.tests.values()))
    print(f"{len(truth.graphs)} graphs, {seeds} whole trainings; the truth:")
    for graph in truth.graphs:
        print(f"{truth.of(graph):6.2f} {suite.methods[graph].title or graph}")
    print(*_table(found, truth), sep="\n")
    if arguments.plot:
        _plot(arguments.plot, found, truth)


if __name__ == "__main__":
    main()
