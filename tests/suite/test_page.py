"""From a CSV to a page: nothing is averaged over that should not be."""

from pathlib import Path

import pytest

from tests.suite.suite_values import METHODS, run_of, suite_of, suite_values, write_suite
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.suite_config import SuiteConfig, load_suite
from timm_ktg.suite.page import write_page
from timm_ktg.suite.table import add_runs, read_table

ALONE, KD, TEACHER = (28.0, 28.4, 27.9), (31.0, 31.3, 31.1), (27.0, 29.0, 28.0)


@pytest.fixture
def suite(tmp_path: Path) -> SuiteConfig:
    return suite_of(tmp_path, description="Said by hand.")


def filled(suite: SuiteConfig, table: Path) -> Path:
    figures = {"alone": ALONE, "kd": KD, "teacher": TEACHER}
    add_runs(table, [run_of(suite, m, s, v) for m, vs in figures.items() for s, v in enumerate(vs)])
    return table


def test_page_says_means_differences_and_costs(suite: SuiteConfig, tmp_path: Path) -> None:
    text = write_page(suite, filled(suite, tmp_path / "r.csv"), "s.yml").read_text()
    assert "Said by hand." in text
    said = "Beside labels alone (1 method compared, Holm, 5 %):\n\n- **Clearly above**: kd.\n\n"
    assert said in text
    (row,) = [line for line in text.splitlines() if line.startswith("| kd ")]
    assert "31.13 ± 0.15 (n=3)" in row and "**+3.03 [" in row
    assert row.endswith("| 1.50 + 2.00 |")  # in trainings of the base: its own, and the teacher's
    assert "| teacher: teacher | 28.00 ± 1.00 (n=3) |" in text
    assert "Missing" not in text and "Left out" not in text
    assert (tmp_path / "r-digits.svg").read_text().startswith("<?xml")


def test_base_alone_has_figures_but_no_empty_picture(suite: SuiteConfig, tmp_path: Path) -> None:
    table, picture = tmp_path / "r.csv", tmp_path / "r-digits.svg"
    add_runs(table, [run_of(suite, "alone", seed, value) for seed, value in enumerate(ALONE)])
    text = write_page(suite, table, "s.yml").read_text()
    assert "28.10 ± 0.26 (n=3)" in text and picture.name not in text and not picture.exists()


def test_page_names_what_it_cannot_tell_apart(tmp_path: Path) -> None:
    twin = {**METHODS["alone"], "title": "twin"}
    suite = suite_of(tmp_path, methods={**METHODS, "twin": twin})
    table = filled(suite, tmp_path / "r.csv")
    add_runs(table, [run_of(suite, "twin", s, v) for s, v in enumerate((28.2, 28.0, 28.3))])
    text = write_page(suite, table, "s.yml").read_text()
    assert "- **Clearly above**: kd.\n- Not told apart: twin.\n" in text
    assert "(2 methods compared, Holm, 5 %)" in text


def test_page_does_not_blame_the_number_of_seeds_that_all_agree(
    suite: SuiteConfig, tmp_path: Path
) -> None:
    table = tmp_path / "r.csv"
    add_runs(table, [run_of(suite, m, s, 100.0) for m in ("alone", "kd") for s in range(3)])
    text = write_page(suite, table, "s.yml").read_text()
    assert "+0.00 [+0.00, +0.00]" in text
    assert "Too little spread to say what differs from labels alone." in text


def test_graphs_are_shown_at_home_and_elsewhere(tmp_path: Path) -> None:
    values = suite_values()
    elsewhere = {**values["datasets"]["digits"], "title": "Elsewhere"}
    values["datasets"] |= {"elsewhere": elsewhere, "third": {**elsewhere, "methods": ["alone"]}}
    values["methods"]["kd"]["found_on"] = "digits"
    suite = load_suite(write_suite(tmp_path / "s.yml", values))
    table = filled(suite, tmp_path / "r.csv")
    text = write_page(suite, table, "s.yml").read_text()
    assert "| graph | digits | Elsewhere |" in text  # the third is not trained with it
    assert "| kd | ***+3.03 [+2.49, +3.58] (n=3)*** | not yet |" in text
    add_runs(table, [run_of(suite, "alone", 0, 50.0, dataset="elsewhere")])
    add_runs(table, [run_of(suite, "kd", 0, 49.0, dataset="elsewhere")])
    text = write_page(suite, table, "s.yml").read_text()
    assert text.splitlines()[-1].endswith("| -1.00 [n too small] (n=1) |")


def test_cost_counts_the_teachers_of_teachers(tmp_path: Path) -> None:
    again = {**METHODS["kd"], "weights": {"t": "kd"}}
    suite = suite_of(tmp_path, methods={**METHODS, "again": again})
    table = filled(suite, tmp_path / "r.csv")
    add_runs(table, [run_of(suite, "again", s, 31.0 + s) for s in range(3)])
    text = write_page(suite, table, "s.yml").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| again ")]
    assert row.endswith("| 1.50 + 3.50 |")  # the teacher's 1.5, and 2 of the teacher's teacher


def test_cost_of_another_data_sets_teachers_is_left_out_and_said(tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["short"] = {**values["datasets"]["digits"], "weights_from": "digits"}
    suite = load_suite(write_suite(tmp_path / "s.yml", values))
    table = filled(suite, tmp_path / "r.csv")
    for method in ("alone", "kd"):
        digest = suite.digest("short", method)
        add_runs(table, [run_of(suite, method, 0, 9.0, dataset="short", recipe=digest)])
    text = write_page(suite, table, "s.yml").read_text().split("## short")[1]
    (row,) = [line for line in text.splitlines() if line.startswith("| kd ")]
    assert row.endswith("| 1.50 |")
    assert "in trainings of labels alone, without the teachers'. The teachers are those of" in text


def test_page_with_teachers_alone_says_so(suite: SuiteConfig, tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    add_runs(table, [run_of(suite, "teacher", 0, 27.0)])
    text = write_page(suite, table, "s.yml").read_text()
    assert "| teacher: teacher | 27.00 (n=1) |" in text and "Not yet" not in text


def test_page_is_the_same_for_the_same_table(suite: SuiteConfig, tmp_path: Path) -> None:
    table = filled(suite, tmp_path / "r.csv")
    first = [write_page(suite, table, "s").read_bytes(), (tmp_path / "r-digits.svg").read_bytes()]
    again = [write_page(suite, table, "s").read_bytes(), (tmp_path / "r-digits.svg").read_bytes()]
    assert first == again


def test_missing_and_stale_runs_are_said_and_not_averaged(
    suite: SuiteConfig, tmp_path: Path
) -> None:
    table = tmp_path / "r.csv"
    add_runs(table, [run_of(suite, "alone", seed, 28.0 + seed) for seed in range(3)])
    add_runs(table, [run_of(suite, "kd", 0, 30.0), run_of(suite, "kd", 1, 99.0, recipe="old")])
    add_runs(table, [run_of(suite, "kd", 7, 99.0)])  # a seed that nobody planned
    text = write_page(suite, table, "s.yml").read_text()
    assert "- **Missing**: teacher: seeds 0, 1, 2; kd: seeds 1, 2." in text
    assert "the plan has changed since: kd seed 1 (old), kd seed 7 (" in text
    assert "| kd | 30.00 (n=1) |" in text and "99.00" not in text
    assert "Too few seeds to say what differs from labels alone." in text


def test_data_set_without_the_base_says_why_nothing_is_compared(tmp_path: Path) -> None:
    values = suite_values()
    values["datasets"]["digits"]["methods"] = ["kd"]
    suite = load_suite(write_suite(tmp_path / "s.yml", values))
    table = tmp_path / "r.csv"
    add_runs(table, [run_of(suite, "kd", seed, 31.0 + seed) for seed in range(3)])
    lines = write_page(suite, table, "s.yml").read_text().splitlines()
    assert [line for line in lines if "Nothing is compared" in line] == [
        "- Nothing is compared with labels alone, because it is not among the methods of this data "
        "set."
    ]


def test_rows_of_a_data_set_that_is_gone_are_said(suite: SuiteConfig, tmp_path: Path) -> None:
    table = filled(suite, tmp_path / "r.csv")
    add_runs(table, [run_of(suite, "alone", 0, 28.0, dataset="former")])
    text = write_page(suite, table, "s.yml").read_text()
    assert text.endswith("rows of data sets that the suite no longer has: former.\n")


def test_page_without_runs_says_not_yet(suite: SuiteConfig, tmp_path: Path) -> None:
    text = write_page(suite, tmp_path / "r.csv", "s.yml").read_text()
    assert "Not yet: the table has no run of it." in text


def test_row_that_cannot_be_read_is_named(suite: SuiteConfig, tmp_path: Path) -> None:
    table = filled(suite, tmp_path / "r.csv")
    table.write_text(table.read_text().replace("28.4", "much"))
    with pytest.raises(RecipeError, match=r"r.csv: line 3, test_top1: .*number"):
        read_table(table)


def test_run_that_is_there_twice_is_refused(suite: SuiteConfig, tmp_path: Path) -> None:
    table = filled(suite, tmp_path / "r.csv")
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    with pytest.raises(RecipeError, match="line 11: alone on digits, seed 0 is there twice"):
        read_table(table)


def test_run_that_the_table_has_stays_as_it_is(suite: SuiteConfig, tmp_path: Path) -> None:
    table = filled(suite, tmp_path / "r.csv")
    add_runs(table, [run_of(suite, "kd", 0, 50.0)])
    assert {run.test_top1 for run in read_table(table) if run.key[1:] == ("kd", 0)} == {31.0}


def test_titles_may_hold_dollars_and_bars(tmp_path: Path) -> None:
    titled = {**METHODS["kd"], "title": r"KD $_{\foo}$ | T=4"}  # \foo is nothing that TeX knows
    suite = suite_of(tmp_path, methods={**METHODS, "kd": titled})
    text = write_page(suite, filled(suite, tmp_path / "r.csv"), "s.yml").read_text()
    assert r"KD $_{\foo}$ | T=4" in (tmp_path / "r-digits.svg").read_text()
    rows = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
