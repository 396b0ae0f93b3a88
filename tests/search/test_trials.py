"""What a trial carries: names that stand in every journal, and what is read from them."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from timm_ktg.search.canonical import GraphEdge, all_through, describe
from timm_ktg.search.final import digest_of
from timm_ktg.search.objective import claim
from timm_ktg.search.result import Row
from timm_ktg.search.trials import (
    TrialRecord,
    finished,
    note,
    record_of,
    records,
    seen_graphs,
    trained_before,
)

# As in a study made by an earlier version.
STORED = {
    "worker": {"host": "a", "pid": 1, "started": 0.5},
    "redrawn": {"invalid": 1, "seen": 2},
    "graph": "1ac61d",
    "models": {"target": "resnet8_cifar", "aux1": "resnet14_cifar"},
    "edges": [["label", "target", "through"], ["aux1", "target", "correct"]],
    "epochs": 4,
}


def test_what_is_stored_is_read() -> None:
    stored = create_trial(value=90.0, intermediate_values={2: 80.0}, user_attrs=STORED)
    trial = TrialRecord(stored)
    assert trial.attributes == STORED
    assert (trial.graph, trial.epochs, trial.reason) == ("1ac61d", 4, "")
    assert trial.models == STORED["models"]
    assert trial.edges[1] == GraphEdge("aux1", "target", "correct")
    assert (trial.values, trial.last) == ({2: 80.0, 4: 90.0}, 90.0)


def test_what_is_noted_is_stored_under_its_name() -> None:
    trial = optuna.create_study().ask()
    note(trial, graph="1ac61d", epochs=4)
    assert trial.user_attrs == {"graph": "1ac61d", "epochs": 4}


def test_trials_that_count_are_told_from_those_of_dead_workers_and_duplicates() -> None:
    study = optuna.create_study(direction="maximize")
    ends = {
        "complete": create_trial(value=90.0, user_attrs={"graph": "a"}),
        "failed": _failed(graph="b", reason="no memory"),
        "worker died": _failed(graph="c"),
        "duplicate": _failed(graph="a", duplicate="a", reason="seen"),
    }
    study.add_trials(ends.values())
    assert [trial.state for trial in records(study)] == list(ends)
    assert [trial.state for trial in finished(study)] == ["complete", "failed"]
    assert seen_graphs(study) == {"a", "b"}


def _failed(**attributes: str) -> optuna.trial.FrozenTrial:
    return create_trial(state=TrialState.FAIL, user_attrs=attributes)


def test_graph_is_described_with_models_or_without() -> None:
    graph = all_through("resnet8_cifar", ["resnet14_cifar"])
    assert str(graph) == "target resnet8_cifar <- label, aux1; aux1 resnet14_cifar <- label, target"
    assert (
        describe(graph.edges[1:2], {"target": "a", "aux1": "b"})
        == "target a <- aux1; aux1 b frozen"
    )
    assert describe([GraphEdge("aux1", "target", "linear")], arrow="←") == "target ← aux1 (linear)"


def test_final_trainings_have_the_name_that_earlier_versions_gave_them() -> None:
    row = Row("label-only", all_through("resnet8_cifar", ()), "sum", value=96.25)
    assert digest_of([row], [0, 1, 2]) == "aa49bd37"


def test_ended_trials_are_read_once_and_others_again() -> None:
    study = optuna.create_study()
    died, running = study.ask(), study.ask()
    for trial, seed in ((died, 1), (running, 2)):
        note(trial, graph=f"g{seed}", seed=seed)
    assert seen_graphs(study) == {"g1", "g2"}  # as long as their workers may live
    study.tell(died, state=TrialState.FAIL)
    done = study.ask()
    note(done, graph="g2", seed=3)
    study.tell(done, 1.0)
    assert seen_graphs(study) == {"g2"}
    assert [trial.number for trial in finished(study)] == [done.number]
    assert trained_before(study, "g2", before=9) == (2, {2, 3})
    assert trained_before(study, "g2", before=2) == (1, {2, 3})
    study.tell(running, 2.0)
    assert [trial.number for trial in finished(study)] == [running.number, done.number]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialRecord, "graph", property(lambda self: pytest.fail("read again")))
        assert len(finished(study)) == 2


def test_graph_goes_to_the_first_trial_that_claims_it_whatever_its_number() -> None:
    study = optuna.create_study()
    early, late = study.ask(), study.ask()
    claim(late, "g")
    with pytest.raises(optuna.TrialPruned):
        claim(early, "g")
    assert [record_of(trial).state for trial in (early, late)] == ["duplicate", "running"]
    claim(early, "g", unique=False)
