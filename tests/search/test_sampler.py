"""Which graphs are drawn, and what happens when none is left."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna import Study, Trial
from optuna.pruners import NopPruner
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tests.search.space_cases import PAPER, Params, every, least_form
from timm_ktg.recipe.search_config import Kind, SearchConfig, kinds_of
from timm_ktg.search.canonical import CanonicalGraph
from timm_ktg.search.parameters import NODES
from timm_ktg.search.sampler import MOST_GRAPHS, GraphSampler, all_graphs, suggest
from timm_ktg.search.space import Choices, SearchSpace, build_choices, canonical
from timm_ktg.search.study import open_study, run_trials
from timm_ktg.search.trials import note, seen_graphs


def choices_of(
    *nodes: int,
    models: str = "ab",
    gates: tuple[str, ...] = PAPER,
    frozen: bool = False,
    kinds: tuple[Kind, ...] = (),
) -> Choices:
    kinds = kinds or kinds_of(frozen)
    spaces = (SearchSpace("t", tuple(models), gates, each, kinds) for each in nodes)
    return Choices(dict(zip(nodes, spaces, strict=True)))


SMALL = choices_of(2, models="a", gates=("through", "cutoff", "correct"))


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> Iterator[None]:
    """Exclude imported objects from the garbage collection after each trial."""
    gc.freeze()
    yield
    gc.unfreeze()


class Run:
    """A study, and what its workers draw."""

    def __init__(self, choices: Choices) -> None:
        self.choices, self.storage = choices, InMemoryStorage()
        self.graphs: list[str] = []

    def worker(self, kind: str = "random", seed: int = 0, unique: bool = True) -> Study:
        """Join as a new worker, with nothing but what is stored."""
        sampler = GraphSampler(self.choices, kind, seed, unique)
        return open_study("study", self.storage, sampler, NopPruner(), {})

    def objective(self, trial: Trial) -> float:
        params = suggest(trial, self.choices)
        graph = self.choices.graph(params)
        assert graph is not None
        note(trial, graph=graph.key)
        self.graphs.append(graph.key)
        return float(trial.number % 7)

    def trials(self, study: Study, count: int) -> list[str]:
        """Run trials, fewer if the study is stopped; return their graphs."""
        before, end = len(self.graphs), len(self.graphs) + count
        run_trials(study, self.objective, lambda study: len(self.graphs) >= end)
        return self.graphs[before:]


@pytest.fixture
def run() -> Run:
    return Run(choices_of(3))


@pytest.fixture
def small() -> Run:
    return Run(SMALL)


def params_of(study: Study) -> list[Params]:
    return [trial.params for trial in study.trials]


# At random.


def test_search_sampler_random_depends_on_seed_and_number_alone() -> None:
    drawn = []
    for seed, parts in ((5, [8]), (5, [3, 4, 1]), (6, [8])):
        run = Run(choices_of(3))
        for count in parts:  # each by a worker that starts anew
            run.trials(run.worker(seed=seed), count)
        drawn.append(params_of(run.worker()))
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_search_sampler_random_does_not_repeat_itself_in_another_worker(run: Run) -> None:
    first, second = run.worker(unique=False), run.worker(unique=False)
    for _ in range(10):
        run.trials(first, 1)
        run.trials(second, 1)
    run.trials(run.worker(unique=False), 10)
    assert len(run.graphs) == 30
    assert len(set(run.graphs)) == 30


def test_search_sampler_draws_no_invalid_graph() -> None:
    run = Run(choices_of(2, gates=("cutoff", "through", "linear")))
    study = run.worker(unique=False)  # one draw of 9 has nothing for the target
    redrawn = 0
    for _ in range(40):
        run.trials(study, 1)  # the objective refuses an invalid one
        assert isinstance(study.sampler, GraphSampler)
        redrawn += study.sampler.redrawn["invalid"]
    assert len(study.trials) == 40
    assert 0 < redrawn < 20


def test_search_sampler_uniform_over_the_valid_choices() -> None:
    choices = choices_of(1, gates=("through", "linear", "cutoff"))
    run = Run(choices)
    run.trials(run.worker(unique=False), 200)
    counts = Counter(params["gate/label->target"] for params in params_of(run.worker()))
    assert counts.keys() == {"through", "linear"}
    assert min(counts.values()) > 70  # 6.6 standard deviations below 100 is 53


@pytest.mark.parametrize("kind", ["random", "tpe", "brute_force"])
def test_search_sampler_draws_no_graph_that_labels_do_not_reach(kind: str) -> None:
    choices = choices_of(2, models="a", gates=("through", "cutoff"), kinds=("learns", "ema"))
    run = Run(choices)
    run.trials(run.worker(kind), 500)
    assert len(set(run.graphs)) == len(reference(choices))
    space = choices.spaces[2]
    drawn = [params for params in params_of(run.worker()) if len(params) > 1]
    assert len(drawn) == len(run.graphs)
    assert all("target" in knowing(space, params) for params in drawn)


@pytest.mark.parametrize("seed", range(8))
def test_search_sampler_ends_with_what_was_seen_and_not_with_an_invalid_graph(seed: int) -> None:
    run = Run(choices_of(2, models="a", gates=("through", "cutoff")))
    run.trials(run.worker(seed=seed), 100)
    assert run.graphs[-1] in run.graphs[:-1]
    assert len(set(run.graphs)) == len(reference(run.choices))


def test_search_sampler_unique_draws_no_graph_twice_and_stops_at_the_end(small: Run) -> None:
    study = small.worker()
    small.trials(study, 500)
    distinct = len(reference(SMALL))
    assert len(study.trials) < 500
    assert len(set(small.graphs[:distinct])) == distinct
    assert len(small.graphs) == distinct + 1  # the one with which it was seen that none is left
    assert isinstance(study.sampler, GraphSampler)
    assert study.sampler.redrawn["seen"] > 100


@pytest.mark.parametrize("kind", ["random", "tpe", "brute_force"])
def test_search_sampler_stops_where_there_is_a_single_choice(kind: str) -> None:
    one = Run(choices_of(1, models="a", gates=("through",)))
    study = one.worker(kind)
    assert len(one.trials(study, 10)) <= 2 and len(study.trials) <= 2


def test_search_sampler_draws_again_where_graphs_need_not_be_unique(small: Run) -> None:
    small.trials(small.worker(unique=False), 60)
    assert len(small.graphs) == 60 > len(set(small.graphs))


def test_search_sampler_graph_of_a_trial_whose_worker_died_is_not_seen(small: Run) -> None:
    study = small.worker()
    small.trials(study, 3)
    died = study.ask()
    small.objective(died)
    assert seen_graphs(study) == set(small.graphs)
    study.tell(died, state=TrialState.FAIL)
    assert seen_graphs(study) == set(small.graphs[:3])


# Each one once.


def knowing(space: SearchSpace, params: Params) -> set[str]:
    """The nodes that labels reach: by edges, or because a frozen network has learned them."""
    names = ["target", *space.auxiliaries]
    roles = {name: params.get(f"role/{name}", space.kinds[0]) for name in space.auxiliaries}
    slow = {name for name, role in roles.items() if role == "ema"}
    pairs = [
        (source, node)
        for source, node in space.pairs
        if params[f"gate/{source}->{node}"] != "cutoff" and roles.get(node, "learns") == "learns"
    ]
    known = {"label", *names} - {node for _, node in pairs} - slow
    for _ in names:
        known |= {node for source, node in pairs if source in known}
        known |= slow if "target" in known else set()
    return known


def reference(choices: Choices) -> set[Any]:
    """Every distinct graph worth a training, by all renamings of the auxiliaries of all choices."""
    return {
        form
        for space in choices.spaces.values()
        for params in every(space)
        if "target" in knowing(space, params) and (form := least_form(space, params)) is not None
    }


SPACES = {
    "2 nodes": choices_of(2),
    "2 nodes, frozen": choices_of(2, frozen=True, gates=("through", "cutoff", "linear")),
    "3 nodes": choices_of(3, gates=("through", "cutoff")),
    "1, 2 or 3 nodes": choices_of(1, 2, 3, gates=("through", "cutoff")),
    "slow copies": choices_of(3, gates=("through", "cutoff"), kinds=("ema", "learns", "frozen")),
}


@pytest.mark.parametrize("name", SPACES)
def test_search_sampler_all_graphs_are_each_distinct_one_once(name: str) -> None:
    choices = SPACES[name]
    expected = reference(choices)
    found = all_graphs(choices)
    forms = [least_form(choices.space(params), params) for params in found.values()]
    assert set(forms) == expected
    assert len(forms) == len(expected)
    graphs = [choices.graph(params) for params in found.values()]
    assert [graph.key for graph in graphs if graph is not None] == list(found)


def test_search_sampler_brute_force_visits_every_graph_once_and_stops() -> None:
    choices = choices_of(1, 2, models="ab", gates=("through", "cutoff", "linear"))
    run = Run(choices)
    first = run.trials(run.worker("brute_force"), 10)
    second = run.trials(run.worker("brute_force", seed=1), 500)
    forms = [
        least_form(choices.space(params), params) for params in params_of(run.worker("brute_force"))
    ]
    assert len(first) == 10 and len(second) == len(forms) - 10
    assert len(forms) == len(set(forms))
    assert set(forms) == reference(choices)


def test_search_sampler_brute_force_refuses_a_large_space() -> None:
    large = choices_of(3, models="ab")
    assert large.size > MOST_GRAPHS
    with pytest.raises(ValueError, match=r"of up to 200,000 choices\. Found 1,048,576\.$"):
        GraphSampler(large, "brute_force", 0, unique=True)


# By TPE.


@pytest.mark.parametrize("unique", [True, False])
def test_search_sampler_tpe_draws_several_numbers_of_nodes(
    unique: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(choices_of(1, 2))
    study = run.worker("tpe", unique=unique)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run.trials(study, 40)
    params = params_of(study)
    assert len(params) == 40
    assert {each[NODES] for each in params} == {1, 2}
    for each in params:
        assert each.keys() == {NODES, *run.choices.space(each).choices()}
    assert caplog.records == []  # drawn by itself, the number of nodes would be warned of
    if unique:
        assert len(set(run.graphs)) == 40


def test_search_sampler_tpe_learns_what_is_good() -> None:
    run = Run(choices_of(3, gates=("through", "linear", "correct")))

    def through(params: Params) -> int:
        return sum(value == "through" for value in params.values())

    def objective(trial: Trial) -> float:
        run.objective(trial)
        return float(through(trial.params))

    study = run.worker("tpe")
    run_trials(study, objective, lambda study: len(study.trials) >= 60)
    numbers = [through(params) for params in params_of(study)]
    assert sum(numbers[-10:]) / 10 > sum(numbers[:10]) / 10 + 1.5  # of 9 gates, 3 by chance


def test_search_sampler_tpe_proposes_what_was_not_seen_instead_of_a_random_graph() -> None:
    run = Run(choices_of(2, gates=("through", "linear", "correct")))
    redrawn = []

    def objective(trial: Trial) -> float:
        run.objective(trial)
        redrawn.append(trial.study.sampler.redrawn["seen"])  # type: ignore[attr-defined]
        return float(sum(value == "through" for value in trial.params.values()))

    run_trials(run.worker("tpe"), objective, lambda study: len(study.trials) >= 60)
    assert sum(redrawn) < 60  # Optuna's own proposed 2,041


def test_search_sampler_tpe_that_insists_on_what_was_seen_stops_no_study() -> None:
    run = Run(choices_of(1, 2, gates=("through", "cutoff")))

    def objective(trial: Trial) -> float:
        run.objective(trial)
        return 100.0 if trial.params[NODES] == 1 else float(trial.number % 7)  # of 1 node: 1 graph

    study = run.worker("tpe")
    run_trials(study, objective, lambda study: len(run.graphs) >= 500)
    assert set(run.graphs) == set(all_graphs(run.choices))
    assert len(run.graphs) == len(all_graphs(run.choices)) + 1


# By hand.


@pytest.mark.parametrize("kind", ["random", "tpe", "brute_force"])
def test_search_sampler_enqueued_params_win(kind: str) -> None:
    choices = choices_of(1, 2)
    run = Run(choices)
    study = run.worker(kind)
    chosen = {NODES: 2, **dict.fromkeys(choices.largest.choices(), "correct"), "model/aux1": "b"}
    study.enqueue_trial(chosen)
    study.enqueue_trial({NODES: 2, "gate/label->target": "linear"})  # the rest is drawn
    study.enqueue_trial(chosen)  # also what was seen before
    run.trials(study, 4)
    first, second, third, _ = params_of(study)
    assert first == third == chosen
    assert (second[NODES], second["gate/label->target"]) == (2, "linear")
    assert second.keys() == chosen.keys() and len(set(second.values())) > 3  # drawn apart


def test_search_sampler_enqueued_graph_is_drawn_as_it_was() -> None:
    choices = choices_of(1, 2, 3)
    graph = canonical(choices.spaces[2], next(p for p in every(choices.spaces[2])))
    assert isinstance(graph, CanonicalGraph)
    run = Run(choices)
    study = run.worker()
    study.enqueue_trial(choices.params(graph))
    assert run.trials(study, 1) == [graph.key]


def test_search_sampler_size_counts_what_is_drawn() -> None:
    choices = choices_of(1, 2, frozen=True, gates=("through", "cutoff"))
    assert choices.size == sum(1 for space in choices.spaces.values() for _ in every(space))


def test_search_sampler_choices_come_from_the_recipe() -> None:
    search = SearchConfig.model_validate(
        {
            "nodes": [2, 1, 2],
            "target_model": "resnet8_cifar",
            "models": ["resnet14_cifar"],
            "gates": ["through", {"gate": "linear"}],
        }
    )
    choices = build_choices(search)
    assert list(choices.spaces) == [2, 1]
    assert choices.largest == SearchSpace(
        "resnet8_cifar", ("resnet14_cifar",), ("through", "linear"), 2
    )
