"""The password of a database is in no message, no help and no file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from timm_ktg.errors import RecipeError, found, masked
from timm_ktg.recipe.recipe import check_section, read_recipe, save_recipe
from timm_ktg.recipe.search_command import parse_search
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.review.__main__ import main as review
from timm_ktg.search.__main__ import main as search
from timm_ktg.train.__main__ import main as train

PW = "hunter2!x"
URL = f"postgresql://bob:{PW}@host/db"
MISSPELT = [
    f"postgresql://bob:{PW}",
    f"postgres://bob:{PW}@host/db",
    f"postgresql:/bob:{PW}@host/db",
    f"bob:{PW}@host/db",
    f"postgresql://bob:{PW}@host:port/db",
    f"posgresql://bob:{PW}@host/db",
    f"mysql://bob:{PW}@host/db",
    f"mysql://bob:{PW}",
    f"mysql:bob:{PW}",
    f"redis://:{PW}",
    f"postgresql:///db?user=bob&password={PW}{{",
    f"postgresql://bob:p@{PW}@host/db",
    f"postgresql://bob:p {PW}@host/db",
    f"host=h user=bob password={PW}",
]
WRONG: list[Any] = [*MISSPELT, [URL], {"url": "host", "password": PW}, [PW], f"x\n{URL}"]


def values(storage: Any) -> dict[str, Any]:
    return {
        "search": {"nodes": 1, "target_model": "resnet8_cifar", "storage": storage},
        "data": {"holdout": 100},
    }


@pytest.fixture(autouse=True)
def _place(workplace: Path) -> None: ...


def output(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert "Traceback" not in err and len(err.splitlines()) <= 1, err
    return out + err


@pytest.mark.parametrize("storage", WRONG, ids=range(len(WRONG)))
def test_wrong_storage_in_a_recipe_is_refused_without_its_password(
    storage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(values(storage)))
    assert search(["s.yaml", "--dry-run"]) in (0, 2)  # a dry run opens no storage
    assert PW not in output(capsys)


@pytest.mark.parametrize("storage", MISSPELT)
def test_wrong_storage_on_a_command_line_is_refused_without_its_password(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text("search: {nodes: 1, target_model: resnet8_cifar}\ndata: {holdout: 9}")
    for argv in (
        ["s.yaml", "--search.storage", storage, "--output-dir", "out"],
        ["s.yaml", "--search.storag", storage],
        [storage],
        ["s.yaml", storage],
        ["s.yaml", f"--dry-run={storage}"],
    ):
        assert search(argv) == 2, argv
        assert PW not in output(capsys)
    for argv in (["report", ".", "--storage", storage], ["report", ".", "--storge", storage]):
        try:
            assert review(argv) == 2
        except SystemExit as end:  # argparse says what it does not know
            assert end.code == 2
        out, err = capsys.readouterr()
        assert PW not in out + err


@pytest.mark.parametrize(
    "text",
    [
        f"search: {URL}",
        f"search: [{URL}]",
        f"search: [{{storage: {{pass: {PW}}}}}]",
        f"search: {{storage: '{URL}",
        f"search:\n  storage: {URL}: x",
        f"- {URL}",
        f"train: {{lr: {URL}}}\nsearch: {{nodes: 1, target_model: {URL}, gates: [{URL}]}}",
        f"data: {{dataset: {URL}, holdout: 5}}\nsearch: {{nodes: 1, target_model: resnet8_cifar}}",
    ],
)
def test_password_at_a_wrong_place_is_not_repeated(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(text)
    assert search(["s.yaml", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert PW not in out + err and "Traceback" not in err


@pytest.mark.parametrize("storage", [URL, *MISSPELT])
def test_password_is_in_no_help(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(values(storage)))
    with pytest.raises(SystemExit):
        parse_search(["s.yaml", "--help"], "search")
    said = capsys.readouterr().out
    assert "--search.storage" in said and PW not in said


def test_password_is_in_no_file_and_no_representation() -> None:
    recipe = check_section(SearchRecipe, values(URL))
    assert recipe.search.storage == URL
    save_recipe(recipe, Path("search.yaml"))
    assert read_recipe(Path("search.yaml"))["search"]["storage"] is None
    assert PW not in repr(recipe) + recipe.model_dump_json() + str(recipe.model_dump())


def test_path_of_a_journal_is_written_down() -> None:
    save_recipe(check_section(SearchRecipe, values("my.journal")), Path("search.yaml"))
    assert read_recipe(Path("search.yaml"))["search"]["storage"] == "my.journal"


def test_error_shows_no_password_whoever_raises_it() -> None:
    assert PW not in str(RecipeError([f"x: {URL} and bob:{PW}@host"]))
    assert PW not in found({"a": [URL], "storage": PW, "b": {"password": PW}})


@pytest.mark.parametrize("url", ["postgresql://bob:73154", "mysql://bob:73154"])
def test_password_that_looks_like_a_port_is_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(values(url)))
    for argv in (["s.yaml", "--output-dir", "out"], [url], ["s.yaml", f"--search.models={url}"]):
        assert search(argv) == 2
        assert "73154" not in output(capsys)


def test_password_in_place_of_a_data_set_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(["digits", f"--data.dataset=mysql://bob:{PW}"]) == 2
    assert PW not in output(capsys)


@pytest.mark.parametrize(
    "text",
    [
        *("data.mean: a, b@c", "https://docs.org:80/x", "postgresql://... .", "C:/a b", "s3://a/b"),
        *("hf-hub:timm/resnet18.a1_in1k", "graph.nodes.oracle: should be", "/tmp/x: /tmp/y"),
    ],
)
def test_what_holds_no_password_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text
