"""What a trial carries: the one reader and the one writer of its attributes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NotRequired, TypedDict, Unpack, cast
from weakref import WeakKeyDictionary

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from .canonical import GraphEdge

# What became of a trial; the other states are Optuna's, in lower case.
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
RUNNING, WAITING = "running", "waiting"
DUPLICATE, DEAD = "duplicate", "worker died"

# What a trial costs, and the names that it has in the study.
COSTS = INFERENCE, PARAMETERS, TRAINING = "inference_flops", "parameters", "training_flops"

KEPT = ("seed", "rung", "promotes")  # attributes that a trial keeps when it is tried again
NEEDLESS = "needless"  # another worker does what the trial was for


class Process(TypedDict):
    """What tells a process from all others, a later one with the same number included."""

    host: str
    pid: int
    started: float  # seconds since 1970
    since_boot: NotRequired[float]  # when it started, by a clock that nobody sets
    kernel: NotRequired[str]  # id of the running kernel; containers on one host share it
    namespace: NotRequired[str]  # in which `pid` is its number
    lock: NotRequired[str]  # name of the file beside the journal that it holds locked


class Attributes(TypedDict, total=False):
    """A trial's attributes, by the names that they have in the study.

    A study that was begun by an earlier version goes on only as long as these stay the same.
    """

    worker: Process  # which works on the trial
    redrawn: dict[str, int]  # how many graphs were drawn in vain: `invalid`, or `seen` before
    graph: str  # key of the graph
    seed: int  # that the graph is trained from
    rung: int  # of a search by short runs, from 0; it says how long the graph is trained
    promotes: int  # number of the trial on the rung below whose graph is trained for longer
    # Why the trial was not trained: key of a graph that was seen before, `invalid`, or NEEDLESS.
    duplicate: str
    models: dict[str, str]  # the nodes' models by name
    edges: list[list[str]]  # source, destination and gate of each edge
    epochs: int  # how many were trained
    cost: dict[str, int]  # see `TrialRecord.cost`
    reason: str  # why the trial failed by itself; there is none if its worker died
    digest: str  # of the weights that a job has trained
    artifact: str  # id of these weights in the store of artifacts


def note(trial: Trial, **attributes: Unpack[Attributes]) -> None:
    """Write attributes into a trial, where all workers see them at once."""
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def enqueue(study: Study, params: dict[str, Any], **attributes: Unpack[Attributes]) -> None:
    """Let the next free worker try a graph, in a trial that carries attributes from the start."""
    study.enqueue_trial(params, user_attrs=dict(attributes))


@dataclass(frozen=True)
class TrialRecord:
    """A trial, to be read.

    Args:
        trial: As Optuna keeps it.
    """

    trial: FrozenTrial

    @property
    def number(self) -> int:
        """Optuna's number, from 0."""
        return self.trial.number

    @property
    def attributes(self) -> Attributes:
        """What the search has written into it."""
        return cast(Attributes, self.trial.user_attrs)

    @property
    def state(self) -> str:
        """What became of it, in a word or two."""
        if "duplicate" in self.attributes:
            return DUPLICATE
        if self.trial.state == TrialState.FAIL:
            return FAILED if "reason" in self.attributes else DEAD
        return self.trial.state.name.lower()

    @property
    def graph(self) -> str | None:
        """Key of its graph; None: it has not drawn any yet."""
        return self.attributes.get("graph")

    @property
    def seed(self) -> int | None:
        """The seed that its graph is trained from; None: an earlier version did not note it."""
        return self.attributes.get("seed")

    @property
    def rung(self) -> int:
        """The rung, from 0, that a search by short runs has it on; 0 in other searches."""
        return self.attributes.get("rung", 0)

    @property
    def promotes(self) -> int | None:
        """Number of the trial on the rung below that it promotes; None: it draws a graph."""
        return self.attributes.get("promotes")

    @property
    def is_enqueued(self) -> bool:
        """Whether it was made to try a given graph, or to do again what a dead worker began."""
        return bool({"fixed_params", "failed_trial"} & self.trial.system_attrs.keys())

    @property
    def is_needless(self) -> bool:
        """Whether another worker did what it was for."""
        return self.attributes.get("duplicate") == NEEDLESS

    @property
    def models(self) -> dict[str, str]:
        """The nodes' models by name; empty if it did not get as far as training."""
        return dict(self.attributes.get("models", {}))

    @property
    def edges(self) -> tuple[GraphEdge, ...]:
        """The edges that exist; none if it did not get as far as training."""
        return tuple(GraphEdge(*edge) for edge in self.attributes.get("edges", ()))

    @property
    def epochs(self) -> int:
        """How many epochs were trained."""
        return self.attributes.get("epochs", 0)

    @property
    def cost(self) -> dict[str, int]:
        """What it costs, by COSTS; empty if an earlier version trained it, or nobody did.

        The floating-point operations of its target, or its ensemble, for an image, their
        parameters, and the operations of all its epochs (see `Cost`).
        """
        return self.attributes.get("cost", {})

    @property
    def reason(self) -> str:
        """Why it failed, or nothing."""
        return self.attributes.get("reason", "")

    @property
    def value(self) -> float | None:
        """Its result, where there is one: the target's validation top-1 in percent."""
        return self.trial.value

    @cached_property
    def values(self) -> dict[int, float]:
        """The target's validation top-1 in percent by epoch: at the rungs, and at the end."""
        found = dict(sorted(self.trial.intermediate_values.items()))
        if self.trial.state == TrialState.COMPLETE and self.trial.value is not None:
            found.setdefault(self.epochs, self.trial.value)
        return found

    @property
    def last(self) -> float | None:
        """The last of the values."""
        return next(reversed(self.values.values()), None)


def record_of(trial: Trial) -> TrialRecord:
    """Return what a running trial carries so far."""
    return TrialRecord(trial.study._storage.get_trial(trial._trial_id))


def records(study: Study) -> list[TrialRecord]:
    """Return all trials of a study, by number."""
    return [TrialRecord(trial) for trial in study.get_trials(deepcopy=False)]


def finished(study: Study) -> list[TrialRecord]:
    """Return the trials that count: complete, pruned, or failed for a reason of their own.

    A trial whose worker died does not count, nor does one whose graph had been seen before.
    """
    return sorted(_history(study).finished, key=lambda trial: trial.number)


def best_first(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return trials by the last of their values, the best first, each graph once."""
    best: dict[str | None, TrialRecord] = {}
    for trial in sorted(trials, key=lambda trial: (-(trial.last or 0.0), trial.number)):
        best.setdefault(trial.graph, trial)
    return list(best.values())


def seen_graphs(study: Study) -> set[str]:
    """Return the keys of all trials' graphs, except those of trials whose worker died."""
    return set(_history(study).seen)


def trained_before(study: Study, graph: str, before: int) -> tuple[int, set[int]]:
    """Return how many earlier trials trained a graph, and the seeds that any trial was given.

    The seeds of trials that wait to be tried again count, too, which have no graph yet.

    Args:
        study: The study.
        graph: Key of the graph.
        before: Count only trials below this number.
    """
    history = _history(study)
    return sum(number < before for number in history.trained.get(graph, ())), history.seeds


class _History:
    """What the trials of a study say, added up: an ended one does not change, and is read once."""

    def __init__(self) -> None:
        self.finished: list[TrialRecord] = []
        self.seen: set[str] = set()  # the trials' graphs
        self.trained: dict[str, list[int]] = {}  # all trials with a graph that train it
        self.seeds: set[int] = set()
        self._read, self._open = 0, list[int]()  # trials seen; those of them that may yet change

    def add(self, trial: TrialRecord) -> None:
        """Add a trial."""
        graph, state = trial.graph, trial.state
        if state in (COMPLETE, PRUNED, FAILED):
            self.finished.append(trial)
        if graph is not None and (trial.trial.state != TrialState.FAIL or trial.reason):
            self.seen.add(graph)
        if state not in (DEAD, DUPLICATE):
            if graph is not None:
                self.trained.setdefault(graph, []).append(trial.number)
            if trial.seed is not None:
                self.seeds.add(trial.seed)

    def now(self, study: Study) -> _History:
        """Return a history with all trials, after those that have ended were added to this one."""
        trials = study.get_trials(deepcopy=False)
        ahead = [TrialRecord(trials[at]) for at in (*self._open, *range(self._read, len(trials)))]
        self._read, self._open = len(trials), []
        going: list[TrialRecord] = []
        for trial in ahead:
            if trial.trial.state.is_finished():
                self.add(trial)
            else:
                self._open.append(trial.number)
                going.append(trial)
        if not going:
            return self
        both = _History()
        both.finished, both.seen = list(self.finished), set(self.seen)
        both.trained = {graph: list(each) for graph, each in self.trained.items()}
        both.seeds = set(self.seeds)
        for trial in going:
            both.add(trial)
        return both


_histories: WeakKeyDictionary[Study, _History] = WeakKeyDictionary()  # of this process


def _history(study: Study) -> _History:
    return _histories.setdefault(study, _History()).now(study)
