"""A run whose images are streamed: killed, resumed, in two processes, and wrongly described."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk

from tests.recipe_cases import MUTUAL, Refused, Values, recipe_values, write_recipe
from tests.tiny_data import TEST, UPDATES, save, small_digits
from tests.train.test_resume import kill_when
from tests.training_cases import (
    assert_same_run,
    finish,
    metrics_of,
    on_cpu,
    program,
    run_main,
    start,
    start_two,
    summary_of,
    train_run,
)
from timm_ktg.validate import main as validate

pytestmark = pytest.mark.slow

EPOCHS = 3
STREAMED: Values = {
    **{"pipeline": "timm", "streaming": True, "holdout": 0, "pad": 4},
    **{"img_size": 8, "shuffle_buffer": 50, "mixup": 0.2, "reprob": 0.3},
}
NODES: Values = {
    name: {**node, "model_kwargs": {"drop_rate": 0.2, "norm": True}}
    for name, node in MUTUAL.items()
}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set in files that can be read in order."""
    folder = tmp_path_factory.mktemp("parquet") / "digits"
    digits = load_from_disk(small_digits())
    save(folder, train=digits["train"], valid=digits["test"], test=digits["test"])
    return folder


def values(folder: Path, **data: object) -> Values:
    """A recipe with fewer images in an epoch than there are."""
    options = {"dataset": str(folder), "val_split": "valid", "train_num_samples": 64 * UPDATES - 54}
    return recipe_values(NODES, data={**STREAMED, **options, **data}, epochs=EPOCHS)


def test_killed_stream_goes_on_bit_for_bit(parquet: Path, tmp_path: Path) -> None:
    # Each worker imports everything here, because the run's process is one of a fork server.
    recipe = write_recipe(tmp_path / "run.yaml", values(parquet, workers=1, val_split=None))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(tmp_path / "whole.log", program, recipe, "--output-dir", whole)
    assert finish(process) == [0], (tmp_path / "whole.log").read_text()
    process = start(tmp_path / "1.log", program, recipe, "--output-dir", killed)
    kill_when(process, killed / "checkpoint" / "epoch-0001", delay=0.05)
    assert len(metrics_of(killed)) < EPOCHS
    process = start(tmp_path / "2.log", program, "--resume", killed)
    assert finish(process) == [0], (tmp_path / "2.log").read_text()
    assert "epochs done: 0" not in (tmp_path / "2.log").read_text()
    assert_same_run(whole, killed)
    assert summary_of(whole)["images"] == TEST


@on_cpu
def test_two_processes_stream_and_resume_only_as_two(
    parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", values(parquet, workers=0))
    two = tmp_path / "two"
    assert finish(*start_two(tmp_path, program, recipe, "--output-dir", two)) == [0, 0]
    assert summary_of(two)["processes"] == 2
    again = Path(shutil.copytree(two, tmp_path / "again"))
    shutil.rmtree(again / "checkpoint" / f"epoch-{EPOCHS:04d}")
    (again / "summary.json").unlink()
    assert run_main("--resume", again) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a stream can only go on with as many processes as before, 2. Found 1" in said
    assert finish(*start_two(tmp_path, program, "--resume", again)) == [0, 0]
    assert_same_run(two, again)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"pipeline": "memory"},
            "data.streaming: has no effect unless data.pipeline is timm. Leave it out, or give its "
            "default, false.",
        ),
        ({"holdout": 5}, "data.holdout: has no effect on images that are streamed. Leave it out."),
        (
            {"streaming": False},
            "data.train_num_samples: has no effect unless data.streaming is true. Leave it out, or "
            "give its default, null.",
        ),
        (
            {"target_key": "lable"},
            "data.target_key: `lable` is no column. Columns: image, label, name. "
            "Did you mean `label`?",
        ),
    ],
)
def test_wrong_settings_of_a_stream_cost_one_line(
    data: Values, expected: str, parquet: Path, refused: Refused
) -> None:
    defaults = {"val_split": None} if "holdout" in data else {}
    assert expected in refused(values(parquet, **{**defaults, **data}))


def test_streamed_run_is_validated_as_it_was_tested(parquet: Path, workplace: Path) -> None:
    run = train_run(workplace / "run", values(parquet, workers=0))
    assert validate([str(run), "-o", "found"]) == 0
    found = json.loads(Path("found/validation.json").read_text())
    assert found["images"] == TEST
    for name, expected in summary_of(run)["nodes"].items():
        node = found["nodes"][name]
        assert {top: node[top] for top in ("top1", "top5")} == pytest.approx(expected)
