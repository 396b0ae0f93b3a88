"""Asynchronous successive halving with promotion: which graph is trained next, and on which rung.

Optuna's pruner stops trials; here each trial is complete, and its graph may be promoted: trained
again, in another trial, on the rung above. All that a decision needs is in the study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .liveness import RETRIES
from .trials import COMPLETE, DEAD, FAILED, RUNNING, WAITING, TrialRecord

COUNTED = (WAITING, RUNNING, COMPLETE, FAILED)


class Step(Enum):
    """What a free worker does when there is nothing to promote."""

    ASK = auto()  # take a trial that waits, or draw a graph
    WAIT = auto()  # until a trial of another worker has ended
    END = auto()


@dataclass(frozen=True)
class Ladder:
    """The rungs of a search by short runs, and how much there is to spend.

    A worker that is free promotes a trial if it can, from the highest rung that has one; otherwise
    it draws a new graph, so nobody waits for a rung to fill. Once nothing is drawn any more, the
    promotions that the rule still asks for follow. If even then no graph has run on the top rung,
    because there were too few or because all failed there, the best of the highest rung goes up.

    Beyond the paper there is a budget. A graph is drawn only if its own trial, and all promotions
    that are due once it is complete, fit in. A promotion needs room for itself and, as long as the
    top rung is empty, for the way up there; only the very last promotions do without.

    Args:
        costs: Epochs that a trial on each rung trains, the lowest rung first.
        factor: One in this many complete trials of a rung is promoted.
        graphs: How many graphs are drawn.
        budget: Epochs that all trials together may train; None: no limit.

    Reference:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, Alg. 2.
    """

    costs: tuple[int, ...]
    factor: int
    graphs: int
    budget: int | None = None

    @property
    def top(self) -> int:
        """The highest rung, whose trials alone can be the best."""
        return len(self.costs) - 1

    def next(self, trials: Sequence[TrialRecord], draws: bool = True) -> TrialRecord | Step:
        """Return the trial to promote, or what to do instead.

        Args:
            trials: All trials of the study.
            draws: Whether there are graphs left to draw.
        """
        standing = Standing(trials)
        found = self._promotable(standing)
        if found is not None:
            return found
        if standing.states[WAITING] or (draws and self._has_room(standing)):
            return Step.ASK
        if standing.states[RUNNING]:
            return Step.WAIT
        return self._last(standing) or Step.END

    def is_needless(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> bool:
        """Say whether a trial that begins does what earlier ones do already.

        Workers that look at the same time may promote the same trial, or draw the last graph,
        twice. The numbers of trials, which the storage gives out one by one, tell who was first.

        Args:
            trial: The trial.
            trials: All trials of the study.
        """
        earlier = [each for each in trials if each.number < trial.number]
        if trial.promotes is not None:
            same = [each for each in earlier if each.promotes == trial.promotes]
            return any(each.state in COUNTED for each in same)
        return not trial.is_enqueued and not self._has_room(Standing(earlier))

    def _promotable(self, standing: Standing) -> TrialRecord | None:
        """Return the best trial that may be promoted, of the highest rung that has one."""
        for rung in reversed(range(self.top)):
            if self._pays(standing, rung + 1):
                ranked = standing.ranked(rung)
                best = standing.unpromoted(ranked[: len(ranked) // self.factor])
                if best is not None:
                    return best
        return None

    def _has_room(self, standing: Standing) -> bool:
        """Say whether one more graph may be drawn."""
        count = standing.count
        if count[0] >= self.graphs:
            return False
        due, epochs = count[0] + 1, self.costs[0]
        for rung, cost in enumerate(self.costs[1:], start=1):
            due = max(count[rung], due // self.factor, 1)
            epochs += (due - count[rung]) * cost
        return self.budget is None or self._spent(standing) + epochs <= self.budget

    def _spent(self, standing: Standing) -> int:
        """Return how many epochs the trials have taken, with those that go on to their ends."""
        sound = sum(self.costs[rung] * count for rung, count in standing.sound.items())
        return sound + standing.lost_epochs

    def _pays(self, standing: Standing, rung: int) -> bool:
        """Say whether the budget has room for a promotion to a rung."""
        way_up = self.costs[max(rung, *standing.sound, 0) + 1 :]
        epochs = self._spent(standing) + self.costs[rung] + sum(way_up)
        return self.budget is None or epochs <= self.budget

    def _last(self, standing: Standing) -> TrialRecord | None:
        """Return the trial to promote so that the top rung does not stay without a result."""
        if standing.ranked(self.top):
            return None
        rungs = reversed(range(self.top))
        best = (standing.unpromoted(standing.ranked(rung)) for rung in rungs)
        return next((each for each in best if each is not None), None)


class Standing:
    """What trials have come to, from one look at each.

    Args:
        trials: The trials.
    """

    def __init__(self, trials: Iterable[TrialRecord]) -> None:
        self.states = Counter[str]()
        self.count = Counter[int]()  # trials that count, by rung
        self.sound = Counter[int]()  # those that have not failed, by rung
        self.lost_epochs = 0  # of those that have
        self._complete: dict[int, list[TrialRecord]] = {}
        self._promoted: set[int] = set()
        self._died = Counter[int]()  # promotions whose worker died, by the promoted trial
        for each in trials:
            self._add(each, each.state)

    def _add(self, trial: TrialRecord, state: str) -> None:
        rung, promotes = trial.rung, trial.promotes
        self.states[state] += 1
        if state == DEAD and promotes is not None:
            self._died[promotes] += 1
        if state not in COUNTED:
            return
        self.count[rung] += 1
        if promotes is not None:
            self._promoted.add(promotes)
        if state == FAILED:
            self.lost_epochs += trial.epochs
        else:
            self.sound[rung] += 1
        if state == COMPLETE:
            self._complete.setdefault(rung, []).append(trial)

    def ranked(self, rung: int) -> list[TrialRecord]:
        """Return the complete trials of a rung, the best first; of equal ones, the earliest."""
        complete = self._complete.get(rung, [])
        return sorted(complete, key=lambda each: (-(each.value or 0.0), each.number))

    def unpromoted(self, ranked: Iterable[TrialRecord]) -> TrialRecord | None:
        """Return the first that has not been promoted.

        One whose promotions have killed worker after worker counts as promoted.
        """
        left = (each for each in ranked if each.number not in self._promoted)
        return next((each for each in left if self._died[each.number] <= RETRIES), None)
