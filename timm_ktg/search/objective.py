"""A trial: its graph is drawn, trained, reported at its rungs, and perhaps stopped there."""

from __future__ import annotations

from dataclasses import dataclass

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError

from ..data import derive_seed
from ..errors import one_line
from ..recipe.recipe import Recipe
from ..train.seeds import with_seed
from .canonical import CanonicalGraph
from .methods import Method
from .processes import WorkerProcesses
from .recipes import RecipeBuilder
from .sampler import suggest
from .space import Choices
from .storage import making
from .study import say
from .tracking import StudyTracking, TrialRun
from .trials import NEEDLESS, note, record_of, records, seen_graphs, trained_before


@dataclass(frozen=True)
class GraphObjective:
    """Trains a trial's graph.

    Args:
        builder: Makes the graph's recipe.
        choices: What there is to draw.
        processes: Train the graph.
        tracking: Shows the trials.
        method: Says what of its graph's training a trial does.
    """

    builder: RecipeBuilder
    choices: Choices
    processes: WorkerProcesses
    tracking: StudyTracking
    method: Method

    def __call__(self, trial: Trial) -> float:
        """Return the validation top-1 of what is judged after the last epoch, in percent.

        Raises:
            TrialPruned: The trial is not among the best at a rung, or its graph was seen before.
            TrainingError: A loss is not finite.
        """
        graph = self._drawn(trial)
        this = record_of(trial)
        promotes = "" if this.promotes is None else f" promotes trial {this.promotes}"
        say(f"trial {trial.number}{promotes}: {graph}")
        self.processes.spent = {"epochs": 0}
        try:
            with self.tracking.trial(this, graph) as run:
                assert this.seed is not None  # it was noted when the graph was drawn
                recipe = with_seed(self.builder.recipe_of(graph), this.seed)
                run.begin(recipe)
                return self._trained(trial, *self.method.training(recipe, this), run)
        except TrialPruned:
            raise
        except Exception as error:
            say(f"trial {trial.number} failed: {one_line(error)}")
            raise
        finally:
            note(trial, **self.processes.spent)

    def _trained(
        self, trial: Trial, recipe: Recipe, rungs: tuple[int, ...], run: TrialRun
    ) -> float:
        def report(epoch: int, value: float, last: bool) -> bool:
            try:
                trial.report(value, step=epoch)
                stop = not last and trial.should_prune()
            except UpdateFinishedTrialError:  # given to another worker while a database was away
                return True
            run.reached(epoch)
            verdict = "complete" if last else "stopped" if stop else "goes on"
            say(f"trial {trial.number}: {value:.2f} % after epoch {epoch}, {verdict}")
            return stop

        try:
            return self.processes.trial(recipe, rungs, report=report, log=run.log)
        finally:
            run.spent(self.processes.spent)

    def _drawn(self, trial: Trial) -> CanonicalGraph:
        """Return the trial's graph, and note it in the trial."""
        params = suggest(trial, self.choices)
        note(trial, redrawn=dict(getattr(trial.study.sampler, "redrawn", {})))
        this = record_of(trial)
        if self.method.is_needless(this, records(trial.study)):
            note(trial, duplicate=NEEDLESS)
            raise TrialPruned("Another worker does what the trial was for.")
        graph = self.choices.graph(params)
        if graph is None:  # enqueued by hand
            note(trial, duplicate="invalid")
            raise TrialPruned("Too few networks learn.")
        claim(trial, graph.key, self.builder.recipe.search.unique and this.promotes is None)
        if this.seed is None:  # a trial that is tried again keeps its seed
            seed = next_seed(trial.study, self.builder.recipe.train.seed, graph.key, trial.number)
            note(trial, seed=seed)
        note(trial, models=graph.models, edges=[list(edge) for edge in graph.edges])
        return graph


def claim(trial: Trial, graph: str, unique: bool = True) -> None:
    """Note a trial's graph, so that no other trial takes it.

    Args:
        trial: The trial.
        graph: Key of the graph.
        unique: Whether there may be only one with it: the first to note it, whatever its number.

    Raises:
        TrialPruned: Another trial has the graph.
    """
    if not unique:
        note(trial, graph=graph)
        return
    with making(trial.study._storage):  # nobody notes one between the look and the note
        if graph not in seen_graphs(trial.study):
            note(trial, graph=graph)
            return
    note(trial, duplicate=graph, graph=graph)
    raise TrialPruned("The graph was seen before.")


def next_seed(study: Study, seed: int, graph: str, number: int) -> int:
    """Return the seed to train a graph from: another one each time that a study trains it.

    The graph is part of it, so a search does not choose for a single seed. The authors draw anew
    for each trial, too.

    Args:
        study: The study.
        seed: The study's.
        graph: Key of the graph.
        number: Number of the trial; those before it count.
    """
    times, taken = trained_before(study, graph, number)
    while (found := derive_seed(f"trial {graph}", seed, times) % 2**32) in taken:
        times += 1
    return found
