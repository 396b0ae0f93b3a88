"""A journal holds whole lines only, whatever cut its last one."""

import json
import multiprocessing
import resource
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from tests.study_cases import search_of
from timm_ktg.errors import RecipeError
from timm_ktg.search.journal import JOURNAL, Journal
from timm_ktg.search.storage import open_storage, open_to_read

DAMAGE = {
    "half": b'{"op_code":4,"worker_id":"x","stu',
    "no end of line": b'{"op_code":4}',
    "not JSON": b'{"op_code":4,"wor{"op_code":5,"worker_id":"x"}\n',
    "no operation": b"17\n",
    "zeros": bytes(10_000),
    "not UTF-8": b'{"op_code":4,"worker_id":"\xff\xfe"}\n',
    "long": b'{"op_code":"' + b"x" * 20_000,
}


def begun(folder: Path, trials: int = 3) -> bytes:
    """Begin a study, and return its journal."""
    study = optuna.create_study(study_name="study", storage=open_storage(search_of(1), folder))
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=trials)
    return (folder / JOURNAL).read_bytes()


def numbers(folder: Path) -> list[int]:
    study = optuna.load_study(study_name="study", storage=open_storage(search_of(1), folder))
    return [trial.number for trial in study.trials]


@pytest.mark.parametrize("name", DAMAGE)
def test_search_journal_drops_a_damaged_last_line_and_says_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    whole = begun(tmp_path)
    (tmp_path / JOURNAL).write_bytes(whole + DAMAGE[name])
    assert numbers(tmp_path) == [0, 1, 2]
    (said,) = [each.message for each in caplog.records if each.name.startswith("timm_ktg")]
    assert said.startswith(f"{tmp_path / JOURNAL}: the last line was cut off, and is dropped: ")
    assert (tmp_path / JOURNAL).read_bytes() == whole


@pytest.mark.parametrize("name", DAMAGE)
def test_search_journal_that_is_open_drops_a_damaged_last_line_too(
    tmp_path: Path, name: str
) -> None:
    whole = begun(tmp_path)
    study = optuna.load_study(study_name="study", storage=open_storage(search_of(1), tmp_path))
    (tmp_path / JOURNAL).write_bytes(whole + DAMAGE[name])  # another worker died
    study.add_trial(optuna.create_trial(value=1.0))
    assert (tmp_path / JOURNAL).read_bytes().startswith(whole + b'{"op_code":4,')
    assert numbers(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", range(1, 300, 23))
def test_search_journal_that_was_cut_anywhere_goes_on(tmp_path: Path, keep: int) -> None:
    whole = begun(tmp_path)
    (tmp_path / JOURNAL).write_bytes(whole[:-keep])
    study = optuna.load_study(study_name="study", storage=open_storage(search_of(1), tmp_path))
    study.optimize(lambda trial: 1.0, n_trials=2)
    assert numbers(tmp_path) == list(range(len(study.trials)))
    assert (tmp_path / JOURNAL).read_bytes().startswith(whole[: whole.rindex(b"\n", 0, -keep)])


def test_search_journal_that_holds_half_a_line_alone_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(DAMAGE["half"])
    begun(tmp_path)
    assert numbers(tmp_path) == [0, 1, 2]


def test_search_journal_damaged_before_its_last_line_is_refused(tmp_path: Path) -> None:
    lines = begun(tmp_path).splitlines(keepends=True)
    path = tmp_path / JOURNAL
    path.write_bytes(b"".join([*lines[:5], lines[5][:9] + lines[6], *lines[7:]]))
    with pytest.raises(RecipeError) as caught:
        open_storage(search_of(1), tmp_path)
    assert caught.value.problems == (
        f"search.storage: {path}: line 6 is damaged, and others follow it. To go on from the 5 "
        f"lines before it: head -n 5 {path} > repaired",
    )


def test_search_journal_that_is_only_read_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    damaged = begun(tmp_path) + DAMAGE["half"]
    path.write_bytes(damaged)
    assert len(open_to_read(None, tmp_path).get_all_studies()) == 1
    assert path.read_bytes() == damaged


def test_search_journal_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    begun(tmp_path)
    study = optuna.load_study(study_name="study", storage=open_storage(search_of(1), tmp_path))
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(FileNotFoundError, match=JOURNAL):
        study.add_trial(optuna.create_trial(value=1.0))
    assert not (tmp_path / JOURNAL).exists()


def _append_until_full(path: Path, room: int) -> None:
    """Append lines until no more than `room` bytes more are allowed."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room,) * 2)
    study = optuna.load_study(study_name="study", storage=JournalStorage(Journal(str(path))))
    try:
        while True:
            study.add_trial(optuna.create_trial(value=1.0))
    except OSError as error:
        assert error.filename == str(path)


@pytest.mark.parametrize("room", [0, 1, 50, 299, 300, 301, 1000, 5000])
def test_search_journal_write_that_fails_leaves_no_half_line(tmp_path: Path, room: int) -> None:
    path = tmp_path / JOURNAL
    whole = begun(tmp_path)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_append_until_full, args=(path, room))
    process.start()
    process.join()
    assert process.exitcode == 0
    text = path.read_bytes()
    assert text.startswith(whole) and len(whole) <= len(text) <= len(whole) + room
    assert all(json.loads(line) for line in text.splitlines()) and text.endswith(b"\n")
    assert numbers(tmp_path)[:3] == [0, 1, 2]
