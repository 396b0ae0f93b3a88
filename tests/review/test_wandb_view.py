"""The saved view of a search in Weights & Biases, compared with what it should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.search_cases import search_values
from tests.wandb_log import nobody as nobody
from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.review.__main__ import main as review
from timm_ktg.review.wandb_view import build_view
from timm_ktg.search.space import build_choices
from timm_ktg.search.tracking import sweep_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workbench")]

SNAPSHOT = Path(__file__).with_name("wandb_view.json")


def anonymous(value: Any) -> Any:
    """Return a view without the ids that are drawn anew each time, and without what is null."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if each is not None and key != "__id__"}
        return {key: anonymous(each) for key, each in kept.items()}
    return [anonymous(each) for each in value] if isinstance(value, list) else value


def choices() -> Any:
    return build_choices(SearchConfig.model_validate(search_values(nodes=[2, 3])["search"]))


# What W&B's own model warns of.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_view_is_what_it_was() -> None:
    view = build_view("us", "pets", "s", choices())
    found = anonymous(view._to_model().model_dump(mode="json", by_alias=True))
    assert found == json.loads(SNAPSHOT.read_text())


def test_sweep_holds_the_choices_of_the_search() -> None:
    config = sweep_config("s", choices())
    assert config["metric"] == {"name": "target/top1/last", "goal": "maximize"}
    assert config["parameters"]["gate/aux1->target"] == {"values": ["through", "cutoff", "linear"]}
    assert config["parameters"].keys() == choices().largest.choices().keys()


def test_view_needs_somebody_who_is_logged_in(
    shown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert review(["wandb", str(shown)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb login" in line


def test_view_of_a_search_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert review(["wandb", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "search.yaml" in line
