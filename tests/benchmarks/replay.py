"""Which method of search finds the better graph? Replayed on the tables of `recipes/evidence`.

    python -m tests.benchmarks.replay

A search draws the graphs of the tables in a random order, and each of its trainings gets the result
of a random seed, as stored: an epoch's validation top-1 of a whole training, or a short training's.
What decides is the search's own code: Optuna's pruner for ASHA, with the rungs of the paper and a
first rung further up, and `Ladder` for short runs. Paused runs, which no search of ours has, are
promoted by `Ladder`, too, but go on with the training that they paused. A budget is in whole
trainings. The graph with the best whole training (validation) is chosen. Shown is its regret: how
far the truth of the graph, the mean test top-1 of its trainings from other seeds, is behind that of
the best graph in the tables; the mean of 1,000 orders, with the interval of that mean.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import optuna
from optuna.trial import TrialState, create_trial

from tests.benchmarks.predictors import (
    EPOCHS,
    EVIDENCE,
    ORDERS,
    Predictor,
    Truth,
    load_truth,
    predictors,
)
from timm_ktg.recipe.suite_config import load_suite
from timm_ktg.search.promotion import Ladder, Step
from timm_ktg.search.pruning import Asha, rungs
from timm_ktg.search.trials import TrialRecord
from timm_ktg.suite.table import read_table

BUDGETS = (3, 5, 8, 12)  # whole trainings


@dataclass
class Tables:
    """What trainings of the graphs gave.

    Args:
        truth: Of whole trainings.
        short: Complete trainings on shorter schedules, by their epochs.
        chance: Where the seeds come from.
    """

    truth: Truth
    short: dict[int, Predictor]
    chance: random.Random

    def order(self) -> list[str]:
        """Return the graphs in the order in which a search draws them."""
        return self.chance.sample(self.truth.graphs, len(self.truth.graphs))

    def curve(self, graph: str) -> tuple[int, Sequence[float]]:
        """Return the seed and the validation top-1 by epoch of one of a graph's trainings."""
        return self.chance.choice([*self.truth.curves[graph].items()])

    def result(self, graph: str, epochs: int) -> tuple[int, float]:
        """Return the seed and the validation top-1 of one of a graph's complete trainings."""
        if epochs == EPOCHS:
            seed, curve = self.curve(graph)
            return seed, curve[-1]
        return self.chance.choice([*self.short[epochs].scores[graph].items()])

    def regret(self, graph: str, seed: int) -> float:
        """Return how far a graph, chosen by a training from a seed, is behind the best."""
        best = max(self.truth.of(each, seed) for each in self.truth.graphs)
        return best - self.truth.of(graph, seed)


Whole = tuple[float, str, int]  # validation top-1, graph, seed
Policy = Callable[[Tables, float], list[Whole]]


def random_search(tables: Tables, budget: float) -> list[Whole]:
    """Return whole trainings of randomly drawn graphs."""
    count = int(budget / EPOCHS)
    drawn = tables.order()[:count]
    return [(result, graph, seed) for graph in drawn for seed, result in [tables.result(graph, 40)]]


def asha(tables: Tables, budget: float, min_resource: int, factor: int) -> list[Whole]:
    """Return the whole trainings that Optuna's pruner leaves."""
    study = optuna.create_study(
        direction="maximize",
        pruner=Asha(min_resource, factor),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    whole: list[Whole] = []
    spent = 0
    for graph in tables.order():
        if spent >= budget:
            break
        trial, (seed, curve) = study.ask(), tables.curve(graph)
        for epoch in dict.fromkeys((*rungs(EPOCHS, min_resource, factor), EPOCHS)):
            trial.report(curve[epoch - 1], epoch)
            if epoch < EPOCHS and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
            whole.append((curve[-1], graph, seed))
        spent += epoch
    return whole


def short_runs(
    tables: Tables, budget: float, costs: tuple[int, ...], factor: int, paused: bool = False
) -> list[Whole]:
    """Return the trainings on the top rung of a search by short or paused runs."""
    order = tables.order()
    anew = tuple(b - a for a, b in pairwise((0, *costs))) if paused else costs
    ladder = Ladder(anew, factor, len(order), max(int(budget), sum(anew)))
    begun = {graph: tables.curve(graph) for graph in order} if paused else {}
    graphs: list[str] = []
    trials: list[TrialRecord] = []
    whole: list[Whole] = []
    while (step := ladder.next(trials)) is not Step.END:
        noted: dict[str, int] = {"rung": 0}
        if isinstance(step, TrialRecord):
            noted = {"rung": step.rung + 1, "promotes": step.number}
            graphs.append(graphs[step.number])
        else:
            graphs.append(order.pop())
        epochs = costs[noted["rung"]]
        if paused:
            seed, curve = begun[graphs[-1]]
            result = curve[epochs - 1]
        else:
            seed, result = tables.result(graphs[-1], epochs)
        trial = create_trial(value=result, user_attrs={**noted, "epochs": anew[noted["rung"]]})
        trial.number = len(trials)
        trials.append(TrialRecord(trial))
        if epochs == EPOCHS:
            whole.append((result, graphs[-1], seed))
    return whole


def policies(short: dict[int, Predictor]) -> Iterator[tuple[str, Policy]]:
    """Yield the methods by name, as far as the tables have their trainings."""
    yield "random, whole trainings", random_search
    for first, factor in ((1, 2), (4, 2), (10, 2)):
        yield (
            f"asha, first rung {first}, 1 in {factor}",
            partial(asha, min_resource=first, factor=factor),
        )
    for costs in ((4, 40), (10, 40), (20, 40), (4, 20, 40), (10, 20, 40), (4, 10, 40)):
        for factor in (2, 4):
            if all(each in short for each in costs[:-1]):
                name = f"short_runs, {'-'.join(map(str, costs))} epochs, 1 in {factor}"
                yield name, partial(short_runs, costs=costs, factor=factor)
    for costs in ((4, 40), (10, 40), (20, 40), (4, 10, 40)):
        for factor in (2, 4):
            name = f"paused runs, {'-'.join(map(str, costs))} epochs, 1 in {factor}"
            yield name, partial(short_runs, costs=costs, factor=factor, paused=True)


def judged(policy: Policy, truth: Truth, short: dict[int, Predictor], budget: int) -> str:
    """Return a policy's mean regret with its interval, and how often it ended without a graph."""
    tables = Tables(truth, short, random.Random(0))
    chosen = [max(policy(tables, budget * EPOCHS), default=None) for _ in range(ORDERS)]
    lost = [tables.regret(graph, seed) for _, graph, seed in filter(None, chosen)]
    if not lost:
        return "-"
    error = 1.96 * statistics.stdev(lost) / math.sqrt(len(lost))
    none = f" ({ORDERS - len(lost)} without)" if len(lost) < ORDERS else ""
    return f"{statistics.mean(lost):.2f} ± {error:.2f}{none}"


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    suite, rows = load_suite(EVIDENCE / "suite.yml"), read_table(EVIDENCE / "results.csv")
    truth = load_truth(suite, rows)
    titles = {each.title: each for each in predictors(suite, rows, truth)}
    short = {
        epochs: titles[title]
        for epochs in (4, 10, 20)
        if (title := f"complete schedules of {epochs} epochs") in titles
    }
    print(f"{len(truth.graphs)} graphs")
    print(f"| method | {' | '.join(f'{each} whole trainings' for each in BUDGETS)} |")
    print("|---" * (1 + len(BUDGETS)) + "|")
    for name, policy in policies(short):
        cells = [judged(policy, truth, short, budget) for budget in BUDGETS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
