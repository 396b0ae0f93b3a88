"""Looks at a study's test figures: counted, and the seeds planned before the first."""

import optuna
from optuna import Study

from timm_ktg.search.looks import Looks, look, looks_before, plan


def finish(study: Study, *seeds: int, workers: int = 1) -> Looks:
    """End a search with so many workers that joined together."""
    before = [looks_before(study) for _ in range(workers)]
    for each in before:
        plan(study, seeds, each)
    return [look(study, seeds, each) for each in before][-1]


def test_looks_are_counted_once_for_workers_that_ran_together() -> None:
    study = optuna.create_study()
    assert finish(study, 0, 1, workers=3).seen == 1
    second = finish(study, 0, 1, workers=2)
    assert second.seen == 2
    assert "Test figures of this study were seen 2 times" in second.notes[-1]
    assert looks_before(study) == 2


def test_seeds_that_were_added_after_a_look_are_told_from_planned_ones() -> None:
    study = optuna.create_study()
    first = finish(study, 0, 1)
    assert first.planned == (0, 1)
    assert first.notes == ["Seeds 0, 1, as planned before the first look at test figures."]
    more = finish(study, 0, 1, 2)
    assert more.as_json() == {"seeds": [0, 1, 2], "planned seeds": [0, 1], "seen": 2}
    assert more.notes[0] == (
        "Seeds 0, 1, 2; planned were 0, 1. Added after a first look at test figures: 2."
    )
    assert finish(study, 1).notes[0] == "Seeds 1; planned were 0, 1."


def test_study_of_an_earlier_version_has_been_seen_as_often_as_it_was_tested() -> None:
    study = optuna.create_study(study_name="s")
    storage = study._storage
    for name in ("s/final-0123abcd", "s/final-89abcdef", "s/teachers-0123abcd", "t/final-01234567"):
        optuna.create_study(study_name=name, storage=storage)
    found = finish(study, 0, 1)
    assert (found.seen, found.planned) == (3, None)
    assert "is unknown" in found.notes[0]


def test_interrupted_final_trainings_keep_the_plan() -> None:
    study = optuna.create_study(study_name="s")
    plan(study, [0, 1, 2], looks_before(study))
    optuna.create_study(study_name="s/final-0123abcd", storage=study._storage)
    assert looks_before(study) == 0  # no figures were shown yet
    assert finish(study, 0, 1, 2, 3).planned == (0, 1, 2)
