"""Input beyond all bounds costs one line: numbers, nesting, paths, bytes, sizes; and a fuzzer."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.recipe_cases import LABEL_ONLY, Refused, changed, recipe, write
from tests.tiny_data import rows, save_images
from timm_ktg.recipe.recipe import read_recipe
from timm_ktg.train.__main__ import main

pytestmark = pytest.mark.usefixtures("workplace")

LONG = "a/" * 3000
DEEP = "[" * 3000


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("train.lr", 1e300, "should be finite, and below 3.4e+38. Found 1e+300."),
        ("train.momentum", 1e300, "should be finite, and below 3.4e+38. Found 1e+300."),
        ("train.weight_decay", float("inf"), "should be finite, and below 3.4e+38. Found inf."),
        ("train.min_lr", float("inf"), "should be finite, and below 3.4e+38. Found inf."),
        ("train.opt_kwargs", {"eps": [1e300]}, "should be finite, and below 3.4e+38"),
        ("train.epochs", 10**400, "should be below 2**63. Found a number of some 400 digits."),
        ("train.seed", 2**63, "should be below 2**63. Found 9223372036854775808."),
        ("data.cutmix_minmax", [0.9, 0.1], "should be the lower end, then the upper. Found [0.9"),
        ("data.cutmix_minmax", [0.1, 0.11], "should span a pixel of the shorter side or more."),
        ("data.recount", 2**40, "should be at most 1000."),
        ("data.workers", 10**9, "should be at most 1024."),
        ("data.scale", [0.9, 0.1], "should be the lower end, then the upper. Found [0.9, 0.1]."),
        ("data.img_size", 10**6, "should be at most 8192. Found 1000000."),
        ("data.dataset", "~nosuchuser/x", "`~nosuchuser/x` is no path: Could not determine home"),
        ("data.dataset", LONG, "` is no path: File name too long"),
        ("graph.nodes.student.checkpoint_path", LONG, "cannot be used: File name too long."),
        ("graph.nodes.student.learns_from", "{label: through}", "should be a mapping of sources"),
        ("train.learning_rate", 0.1, "unknown key. Did you mean `lr`?"),
        ("train.epochs", 1.5, "should be a whole number. Found 1.5."),
        ("train.lr", "fast", "should be a number. Found 'fast'."),
        ("train.lr", 0, "should be above 0. Found 0."),
        ("train.sync_bn", "maybe", "should be true or false. Found 'maybe'."),
        ("train.sched", "cosin", " or `plateau`. Found 'cosin'. Did you mean `cosine`?"),
        ("train.opt_kwargs", 5, "should be a mapping. Found 5."),
        ("train.decay_milestones", {}, "should be a list. Found {}."),
        ("data.holdout", -3, "should be 0 or more. Found -3."),
        ("data.input_key", None, "should be a text. Found None."),
    ],
)
def test_value_beyond_all_bounds_costs_one_line(
    path: str, value: Any, said: str, refused: Refused
) -> None:
    lines = refused(changed(path, value), "--dry-run")
    assert len([line for line in lines if said in line]) == 1, lines
    # The target of a recipe learns from nothing where that cannot be read.
    assert all(line.startswith((path, "graph.target: ")) for line in lines), lines
    assert all(len(line) < 600 for line in lines)


def test_temperature_beyond_all_bounds_costs_one_line(refused: Refused) -> None:
    for value in (1e300, 1e30):
        edge = {"gate": "through", "temperature": value}
        values = recipe({"learns_from": {"label": "through", "helper": edge}}, LABEL_ONLY)
        (line,) = refused(values, "--dry-run")
        assert line.startswith("graph.nodes.student.learns_from.helper.")
        assert "finite" in line


@pytest.mark.parametrize(
    "text",
    [
        f"train: {{epochs: {'9' * 5001}}}",
        f"train: {DEEP}",
        "graph: " + "{a: " * 2000,
        "train: 2020-13-45",
        "? [a, b]\n: 1",
        "a: &x [*x]\ngraph: *x",
        "train: !!python/object:os.system x",
        "\x00",
    ],
)
def test_text_that_is_no_recipe_costs_one_line(text: str, refused: Refused) -> None:
    lines = refused(text)
    assert all(line.startswith(("recipe.yaml: ", "graph", "a: ", "train")) for line in lines)
    assert all(len(line) < 600 for line in lines)


def test_file_that_is_not_utf_8_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_bytes("graph: {target: ä}".encode("latin-1"))
    assert main(["r.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("r.yaml: should be YAML.")


@pytest.mark.parametrize("flag", ["", "--graph=", "--resume=", "--output-dir="])
def test_path_that_is_too_long_costs_one_line(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"{flag}{LONG}", "--train.epochs=1"] if flag == "--output-dir=" else [f"{flag}{LONG}"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1200


def test_images_that_do_not_fit_into_memory_cost_one_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        total = 2**30

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    (line,) = refused(recipe(data={"img_size": 8192}))
    assert line.startswith("data.pipeline: 327 images of 8192x8192 take 61.3 GiB of memory, more")
    assert "Say `pipeline: timm`" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_training_image_that_cannot_be_read_is_named(
    workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of many images only some are read before training.
    monkeypatch.setattr("timm_ktg.recipe.images.check_some", lambda *_: None)
    save_images(Path("animals"), train=rows(6), test=rows(6))
    Path("animals/train/class 1/4.png").write_bytes(b"no image")
    data = {"dataset": "animals", "pipeline": "timm", "img_size": 16, "workers": workers, "pad": 4}
    assert main([write(recipe(data=data))]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("data.input_key: row ") and "animals/train/class 1/4.png)" in line


def test_vit_at_another_size_hints_at_its_argument(refused: Refused) -> None:
    student = {"model": "vit_tiny_patch16_224", **LABEL_ONLY}
    (line,) = refused(recipe(student, data={"img_size": 64, "pad": 4}))
    assert "cannot take images of 64x64" in line
    assert line.endswith("Did you mean `model_kwargs: {img_size: 64}`?")


def test_node_with_a_size_of_its_own_is_told_of_that_size(refused: Refused) -> None:
    student = {"model": "vit_tiny_patch16_224", "img_size": 96, **LABEL_ONLY}
    (line,) = refused(recipe(student, data={"img_size": 64, "pad": 4}))
    assert "cannot take images of 96x96" in line
    assert line.endswith("Did you mean `model_kwargs: {img_size: 96}`?")


def test_average_of_a_node_that_cannot_take_the_images_is_not_blamed(refused: Refused) -> None:
    student = {"model": "vit_tiny_patch16_224", **LABEL_ONLY}
    values = recipe(student, data={"img_size": 64, "pad": 4})
    values["graph"] = {"target": "slow", "nodes": {"student": student, "slow": {"ema": "student"}}}
    (line,) = refused(values)
    assert line.startswith("graph.nodes.student: cannot take images of 64x64")


def test_flat_folder_hints_at_no_test_split(refused: Refused) -> None:
    for name in ("cat", "dog"):
        Path("flat", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"flat/{name}/1.png")
    (line,) = refused(recipe(data={"dataset": "flat"}))
    assert line.startswith("data.test_split: `test` is no split. Splits: train. If there is no")
    assert "`test_split: null`" in line and "`holdout: n`" in line


# A fuzzer: recipes that train, with wrong values at random places.

VALUES: list[Any] = [
    *(None, True, "", "é☃", "x" * 5000, 10**400, -1, 0, 1e300, float("nan"), -float("inf"), [], {}),
    *(2**63, LONG, "~nosuchuser/x", b"\xff", {1, 2}, [[[1]]], {"a": {"b": [None]}}, {None: 1}),
    *({1: 2}, "{label: through}", ["label"], [0.9, 0.1], "null", "1e5", "a\nb", "\x00", -0.0, {""}),
]


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values below the top of a recipe."""
    inner = values.items() if isinstance(values, dict) else ()
    here = [path] if path else []
    return here + [place for key, value in inner for place in places(value, (*path, key))]


def spoiled(values: Any, draw: random.Random) -> Any:
    values = copy.deepcopy(values)
    for _ in range(draw.choice([1, 1, 2, 3])):
        *above, last = draw.choice(places(values))
        section = values
        for key in above:
            section = section[key]
        match draw.randrange(4):
            case 0:
                section[draw.choice(["learning_rate", "é", 1, None, "a.b"])] = section.pop(last)
            case 1:
                section[last] = [copy.deepcopy(section[last])]
            case _:
                section[last] = copy.deepcopy(draw.choice(VALUES))
    return values


@pytest.mark.parametrize("seed", range(40))
def test_spoiled_recipe_trains_or_costs_one_line(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    values = recipe({"learns_from": {"label": "through", "helper": {"gate": "linear"}}}, LABEL_ONLY)
    values["train"] |= {"lr": 0.1, "opt_kwargs": {}, "sched": "cosine", "weight_decay": 0.0}
    values["data"] |= {"holdout": 3, "mixup": 0.1, "cutmix_minmax": [0.1, 0.9], "mean": None}
    text = yaml.safe_dump(spoiled(values, draw), allow_unicode=True)
    if draw.random() < 0.2:  # damage the text itself
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(["\t", "[" * 2000, "9" * 5001, "&a *a ", "\x07"]) + text[at:]
    Path("r.yaml").write_text(text, encoding="utf-8")
    assert main(["r.yaml", "--dry-run"]) in (0, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said and all(len(line) < 900 for line in said.splitlines())


def test_fuzzer_starts_from_a_recipe_that_trains() -> None:
    values = recipe(LABEL_ONLY)
    assert read_recipe(Path(write(values))) == values
    assert main([write(values), "--dry-run"]) == 0
