"""Errors of a report when there is nothing to show; its inputs stay unchanged."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna import Study
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import NullPool

from tests.review.report_cases import make_study, search_recipe, write_run, write_study
from tests.search.postgres_server import binaries, serve
from timm_ktg.review import report
from timm_ktg.review.__main__ import main
from timm_ktg.review.study_data import read_study
from timm_ktg.search.journal import JOURNAL

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Request a report that cannot be made, and return the one-line error."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert main(["report", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1, said
        return said.err.rstrip("\n")

    return run


def study(name: str = "s") -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(study_name=name, storage=InMemoryStorage(), direction="maximize")


def failed(reason: str | None = None) -> optuna.trial.FrozenTrial:
    attributes = {} if reason is None else {"reason": reason}
    return create_trial(state=TrialState.FAIL, user_attrs=attributes)


def test_what_is_not_there_is_said_in_a_line(tmp_path: Path, refuse: Refuse) -> None:
    gone, empty = tmp_path / "gone", tmp_path / "empty"
    empty.mkdir()
    assert refuse(gone) == f"{gone}: there is no such directory."
    assert refuse(empty) == f"{empty}: should hold a run's metrics.jsonl. Found none."
    search = tmp_path / "search"
    write_study(search, search_recipe(1), study())
    (search / JOURNAL).unlink()
    assert refuse(search) == f"study: should be a journal at {search / JOURNAL}. Found none."
    assert not (search / JOURNAL).exists()
    assert list(empty.iterdir()) == []


def test_studies_without_anything_to_show_are_named(tmp_path: Path, refuse: Refuse) -> None:
    made = study()
    write_study(tmp_path / "0", search_recipe(1), made)
    assert refuse(tmp_path / "0") == f"{tmp_path / '0'}: study `s` has no trial yet."
    made.ask()
    write_study(tmp_path / "1", search_recipe(1), made)
    where = f"{tmp_path / '1'}: study `s`"
    assert refuse(tmp_path / "1") == f"{where} has no trial yet that reached its first rung."
    broken = study()
    broken.add_trials([failed(), failed("no memory"), failed("no disk")])
    write_study(tmp_path / "2", search_recipe(1), broken)
    where = f"{tmp_path / '2'}: study `s`"
    assert refuse(tmp_path / "2") == f"{where} has failed trials only, 3. The first: no memory"


def test_study_of_several_is_to_be_named(tmp_path: Path, refuse: Refuse) -> None:
    recipe = search_recipe(1)
    for name in ("cifar100/first", "second", "second/pretrained", "second/final-0123abcd"):
        write_study(tmp_path, recipe, study(name))
    listed = "Studies: cifar100/first, second."
    assert refuse(tmp_path) == f"{tmp_path}: --study should name one. {listed}"
    said = refuse(tmp_path, "--study", "secnd")
    assert said == f"{tmp_path}: there is no study `secnd`. {listed} Did you mean `second`?"
    assert refuse(tmp_path, "--study", "second") == f"{tmp_path}: study `second` has no trial yet."


def test_runs_without_metrics_are_named(tmp_path: Path, refuse: Refuse) -> None:
    run = write_run(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    metrics.write_text("")
    assert refuse(run) == f"{run}: metrics.jsonl has no epoch yet."
    metrics.write_text('{"epoch": 1\n{"epoch": 2}\n')
    assert refuse(run).startswith(f"{metrics}: cannot be read: Expecting")
    metrics.write_text('{"epoch": 1}\n')
    assert refuse(run) == f"{run}: the run cannot be read. KeyError: 'a'"
    metrics.unlink()
    assert refuse(run) == f"{run}: should hold a run's metrics.jsonl. Found none."


def test_search_is_shown_alone(tmp_path: Path, refuse: Refuse) -> None:
    write_study(tmp_path / "search", search_recipe(1), study())
    run = write_run(tmp_path / "run")
    said = refuse(tmp_path / "search", run)
    assert said == "report: should be one search, or runs. Found 2 directories."


def test_page_takes_the_place_of_a_page_only(tmp_path: Path, refuse: Refuse) -> None:
    run, page = write_run(tmp_path / "run"), tmp_path / "page.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert main(["report", str(run), "-o", str(page)]) == 0  # its own, again
    page.write_text("somebody's")
    said = refuse(run, "-o", page)
    assert said == f"report: {page} is there and is no report; choose another file."
    assert page.read_text() == "somebody's"
    said = refuse(run, "-o", tmp_path)
    assert said == f"report: {tmp_path} is a directory; --output should be a file."
    said = refuse(run, "-o", tmp_path / "nowhere" / "page.html")
    assert said.startswith(f"report: {tmp_path / 'nowhere' / 'page.html'} cannot be written")


def test_missing_extra_is_named(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "jinja2" else find(name))
    said = refuse(write_run(tmp_path / "run"))
    assert said == "report: jinja2 is missing. It comes with: pip install 'timm_ktg[review]'."


def test_search_that_goes_on_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    made = make_study(folder, trials=12)
    (folder / "result.json").unlink()
    running = made.ask()
    running.report(50.0, step=1)
    (folder / JOURNAL).unlink()
    write_study(folder, search_recipe(12), made)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    found = read_study(folder / "search.yaml")
    assert found.trials[running.number].state == "running"
    text = (tmp_path / "page.html").read_text()
    assert "1 of them running" in text and "not tested" in text
    assert all(trial.state == "complete" for trial in found.best)


def test_study_in_a_database_is_read(tmp_path: Path, refuse: Refuse) -> None:
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here")
    pytest.importorskip("psycopg")
    folder = tmp_path / "search"
    made = make_study(folder, trials=6)
    (folder / JOURNAL).unlink()
    with serve(programs) as server:
        url = server.create("studies")
        for _ in range(2):  # nothing is made where there is no study
            said = refuse(folder, "--storage", url)
            assert said == "study: the database should hold one. Found none."
        database = RDBStorage(
            url.replace("postgresql", "postgresql+psycopg"), engine_kwargs={"poolclass": NullPool}
        )
        optuna.copy_study(
            from_study_name=made.study_name, from_storage=made._storage, to_storage=database
        )
        assert main(["report", str(folder), "--storage", url]) == 0
        assert len(read_study(folder, url).trials) == len(made.trials)
        assert refuse(folder, "--storage", url, "--study", "other").endswith("Studies: made-up.")
    assert json.loads((folder / "result.json").read_text())["rows"]
