"""The report of a search or of runs: read in a browser, and what cannot be shown."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from optuna.trial import create_trial

from tests.review.report_cases import Browser, make_study, needs_browser, write_run
from timm_ktg.review import study_page
from timm_ktg.review.__main__ import main
from timm_ktg.review.report import write_report
from timm_ktg.review.run_data import read_run
from timm_ktg.review.stages import FEWEST, importances
from timm_ktg.review.study_data import read_study
from timm_ktg.search.fronts import IN_TRAINING, PER_IMAGE, best_so_far, front, points_of
from timm_ktg.search.trials import TrialRecord

pytestmark = pytest.mark.slow

TRIALS = 150
# Names that look like URLs but are never requested.
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made-up"
    make_study(folder, TRIALS)
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def assert_quiet(browser: Browser) -> None:
    """Assert that the console is empty and that only files and data were requested."""
    assert browser.said() == []
    requests = browser.requests()
    assert requests and all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_table_says_which_auxiliaries_are_frozen() -> None:
    models = {"target": "resnet8_cifar", "aux1": "wrn16_2_cifar", "aux2": "resnet8_cifar"}
    edges = [[*pair, "through"] for pair in (("aux1", "target"), ("label", "aux2"))]
    attributes = {"models": models, "edges": [*edges, ["aux2", "target", "correct"]]}
    row = study_page._trial(TrialRecord(create_trial(value=90.0, user_attrs=attributes)))
    shown = dict(zip([title for title, _ in study_page.COLUMNS], row, strict=True))
    assert shown["auxiliaries"] == "aux1 wrn16_2_cifar (frozen), aux2 resnet8_cifar"


@needs_browser
def test_trials_are_sorted_and_filtered(browser: Browser, folder: Path) -> None:
    from selenium.webdriver.common.by import By

    study = read_study(folder)
    browser.open(folder / "report.html")
    assert browser.cells(1) == [str(number) for number in range(100)]  # 100 at first
    browser.driver.find_element(By.XPATH, "//button[text()='Show 100 more']").click()
    assert len(browser.cells(1)) == len(study.trials) == TRIALS + 1
    browser.driver.find_element(By.XPATH, "//button[text()='best val top-1 %']").click()
    best = [max(trial.values.values()) for trial in study.trials if trial.values]
    shown = [float(cell) for cell in browser.cells(4) if cell != "-"]
    assert shown == sorted((round(value, 2) for value in best), reverse=True)
    assert browser.cells(4)[len(shown) :] == ["-"] * (TRIALS + 1 - len(shown))

    browser.fill("Only state", "complete")
    complete = [trial for trial in study.trials if trial.state == "complete"]
    assert set(browser.cells(2)) == {"complete"}
    assert len(browser.cells(2)) == len(complete)
    assert browser.run("return document.querySelector('#trials output').textContent") == (
        f"{len(complete)} of {TRIALS + 1} trials"
    )
    browser.fill("last val top-1 % at least", "85")
    assert 0 < len(browser.cells(1)) < len(complete)
    assert min(map(float, browser.cells(3))) >= 85
    browser.fill("last val top-1 % at least", "")
    browser.fill("edges contains", "AUX1 (linear)")
    assert all("aux1 (linear)" in cell for cell in browser.cells(8))
    browser.fill("edges contains", "")
    browser.fill("Only state", "")
    browser.fill("Search all columns", "not finite")
    assert set(browser.cells(2)) == {"failed"}
    assert_quiet(browser)


@needs_browser
def test_hover_names_the_trial_and_its_graph(browser: Browser, folder: Path) -> None:
    best = read_study(folder).best[0]
    browser.open(folder / "report.html")
    said = browser.hover("epochs", points_in(folder, "epochs").index(best.number))
    assert f"trial {best.number}, " in said
    assert "target ← " in said and best.models["aux1"] in said
    browser.move(2, 2)
    assert browser.run("return document.querySelector('#epochs .note').hidden")
    assert "mean" in browser.hover("importance", 0) and "one seed" in browser.hover("tested", 0)
    assert_quiet(browser)


def points_in(folder: Path, plot: str) -> list[int | str]:
    """What the points of a figure say, as it is shown at first."""
    text = (folder / "report.html").read_text()
    figure = re.search(rf'<figure id="{plot}">.*?</figure>', text, re.DOTALL)
    assert figure is not None
    shown = re.search(r'"application/json">(.*?)</script>', figure[0])
    assert shown is not None
    return [what for _, _, what in json.loads(shown[1])]


@needs_browser
def test_fronts_are_drawn_and_named_by_their_trials(browser: Browser, folder: Path) -> None:
    study = read_study(folder)
    browser.open(folder / "report.html")
    for name, axis in (("front-training", IN_TRAINING), ("front-inference", PER_IMAGE)):
        points = points_of(study.trials, axis)
        assert points_in(folder, name) == [point.trial.number for point in points]
        assert len(front(points)) > 1
    said = browser.hover("best-so-far", 0)
    assert f"trial {best_so_far(study.trials)[0].trial.number}" in said and "target ← " in said
    assert browser.cells(11)[0] == f"{study.trials[0].cost['parameters']:,}"
    assert_quiet(browser)


@needs_browser
def test_stage_chooses_which_trials_count(browser: Browser, folder: Path) -> None:
    study = read_study(folder)
    browser.open(folder / "report.html")
    choose = "const s = document.getElementById('stage'); s.value = arguments[0];"
    choose += "s.dispatchEvent(new Event('change'))"
    shown = "return [...document.querySelectorAll('#{} .plot:not([hidden]) svg')].length"
    for epoch, trials in study.stages.items():
        browser.run(choose, str(epoch))
        few = browser.run("return !document.getElementById('importance-few').hidden")
        assert few == (len(trials) < FEWEST)
        assert browser.run(shown.format("importance")) == (not few)
        assert browser.run(shown.format("parallel")) == 1
        text = browser.run(
            "return document.querySelector('#parallel :not([hidden]) > svg').textContent"
        )
        assert f"epoch {epoch}" in text
    assert_quiet(browser)


@needs_browser
def test_page_is_light_or_dark_and_fits_a_phone(browser: Browser, folder: Path) -> None:
    pictures = "return [...document.querySelectorAll('.plot svg, .graph svg')]"
    filters = f"{pictures}.map((svg) => getComputedStyle(svg).filter)"
    browser.open(folder / "report.html", dark=False)
    assert set(browser.run(filters)) == {"none"}
    browser.open(folder / "report.html", width=390, dark=True)
    assert set(browser.run(filters)) == {"invert(0.93) hue-rotate(180deg)"}
    assert browser.run("return document.documentElement.scrollWidth") == 390
    browser.theme(dark=True, media="print")
    assert set(browser.run(filters)) == {"none"}  # paper is white
    assert_quiet(browser)


@needs_browser
def test_graph_of_one_node_keeps_its_size(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html")
    sizes = browser.run(
        "return [...document.querySelectorAll('.graph svg')].map("
        "(svg) => [svg.getBoundingClientRect().width, svg.width.baseVal.value])"
    )
    assert min(own for _, own in sizes) < 200
    assert all(shown <= own + 1 for shown, own in sizes)


def test_figures_need_no_script_to_be_seen(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    figures = re.findall(r'<figure id="[^"]+">.*?</figure>', text, re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert re.search(r'class="plot scroll"[^>]*data-stage="\d*" >\s*<svg', figure)
        assert "$" not in figure  # TeX that nobody reads
    assert len(text) < 1_000_000


@needs_browser
def test_runs_are_shown_side_by_side(browser: Browser, tmp_path: Path) -> None:
    first = write_run(tmp_path / "first" / "seed-0").parent
    write_run(first / "seed-1", shift=1.0)
    second = write_run(tmp_path / "second", shift=2.0)
    running = write_run(tmp_path / "running", done=False)
    page = write_report([first, second, running])
    assert page == first / "report.html"
    browser.open(page)
    for plot in ("compared", "targets", "accuracy-0", "loss-1", "weight-2"):
        browser.show(plot)
    rows = browser.run(
        "return [...document.querySelectorAll('tbody tr')].map((row) => row.textContent.trim())"
    )
    table = [re.sub(r"\s*\n\s*", " ", row) for row in rows]
    assert "88.50 ± 0.71 (n=2)" in table[0] and table[0].startswith(str(first))
    assert "90.00 (n=1)" in table[2] and "+1.50 [n too small]" in table[2]
    assert "0 of 1 complete, epoch 4 of 5" in table[4]
    lead = browser.run("return document.querySelector('header').textContent")
    assert f"{first}: a has 88.50 ± 0.71 (n=2) % on the test images." in lead
    assert f"{second}: 90.00 (n=1) %, +1.50 [n too small] over {first}." in lead
    curves = browser.run("return document.getElementById('accuracy-0').textContent")
    assert "a val: 88.70, best 88.70 at 5" in curves  # the mean of the seeds
    assert_quiet(browser)


def test_page_names_no_address(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= NAMESPACES
    assert not re.search(r"\b(src|href)=\"(?!data:|#)", text)


def test_winners_stand_beside_controls_with_intervals(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    for name in ("best-1", "label-only", "all-through sum", "all-through mean"):
        assert f'<th scope="row">{name}</th>' in text
    assert text.count('class="scroll graph"') == 7  # the best three, and four controls
    assert re.search(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\], test set ± \d+\.\d\d<", text)


def test_verdict_is_the_headline_where_the_result_has_one(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    text = (folder / "report.html").read_text()
    assert text.index(result["verdict"]) < text.index("Which graph makes")
    assert all(note in unescape(text) for note in result["notes"])
    for row in result["rows"]:  # as an earlier version wrote it
        for field in ("same as", "one teacher for all seeds", "temperature", "smoothing", "cost"):
            del row[field]
        del row["test top1"]["test set error"]
    earlier = tmp_path / "earlier"
    shutil.copytree(folder, earlier)
    rest = {"rows": result["rows"], "spent": result["spent"]}
    (earlier / "result.json").write_text(json.dumps(rest))
    page = study_page.study_page(read_study(earlier))
    assert page["gains"] == ["label-only", "all-through sum", "all-through mean"]
    assert page["verdict"] == ""


def test_agreement_of_nodes_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "timm_ktg.validate RUN" in write_report([run]).read_text()
    shares = {"a": {"a": 100.0, "b": 87.5}, "b": {"a": 87.5, "b": 100.0}}
    file = run / "validation" / "validation.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"agreement": shares}))
    text = write_report([run]).read_text()
    assert "timm_ktg.validate RUN" not in text and text.count(">87.50<") == 2
    file.write_text("{")
    assert main(["report", str(run)]) == 2


def test_agreement_is_of_nodes_and_images_that_seeds_have_in_common(tmp_path: Path) -> None:
    def measure(seed: str, *nodes: str, share: float = 80.0, **images: str | int) -> None:
        shares = {one: {two: 100.0 if one == two else share for two in nodes} for one in nodes}
        file = write_run(tmp_path / "run" / seed) / "validation" / "validation.json"
        file.parent.mkdir()
        where = {"dataset": "digits", "split": "test", "images": 360}
        file.write_text(json.dumps({**where, **images, "agreement": shares}))

    measure("seed-0", "a", "b", "all-networks")
    measure("seed-1", "b", "a", share=90.0)
    write_run(tmp_path / "run" / "seed-2")  # not measured
    run = read_run(tmp_path / "run")
    assert list(run.agreement) == ["a", "b"] and run.agreement["a"]["b"].values == (80.0, 90.0)
    assert run.left_out == "Left out: all-networks (not measured for every seed)."
    measure("seed-3", "a", split="val")
    measure("seed-4", "a", "b", images=300)
    text = write_report([tmp_path / "run"]).read_text()
    assert text.count(">85.00<") == 2
    said = "all-networks (not measured for every seed); seed-3, seed-4 (measured on other images)."
    assert f">Left out: {said}<" in text


def test_importance_finds_what_was_made_to_matter(folder: Path) -> None:
    study = read_study(folder)
    shares = importances(study.stages[1], 1)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) in ("gate/aux1->target", "gate/aux2->target")
    assert importances(study.stages[1][: FEWEST - 1], 1) == {}
