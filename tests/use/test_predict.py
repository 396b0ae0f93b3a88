"""`python -m timm_ktg.predict`: classes and probabilities of image files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import timm_ktg as ktg
from tests.recipe_cases import recipe_values
from tests.tiny_data import small_digits
from tests.training_cases import build, on_cpu
from timm_ktg.data.sources import load_source
from timm_ktg.predict import main
from timm_ktg.use.prediction import find_images

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workplace")]


@pytest.fixture
def images(workplace: Path) -> Path:
    """The first test images as files, in two folders, beside a text."""
    for number, image in enumerate(load_source(small_digits())["test"]["image"][:9]):
        path = workplace / "images" / ("more" if number > 4 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (workplace / "images" / "notes.txt").write_text("no image")
    return workplace / "images"


def expected(run: Path, node: str | None = None) -> torch.Tensor:
    loader = build(recipe_values()).images.test
    assert loader is not None
    pixels = next(iter(loader()))[0][:9]
    with torch.inference_mode():
        return ktg.load_run(run, node)(pixels).softmax(-1)


@pytest.mark.parametrize("node", [None, "b"])
@on_cpu
def test_probabilities_are_those_of_the_node(run: Path, images: Path, node: str | None) -> None:
    flags = [] if node is None else ["--node", node]
    command = [str(run), "images", *flags, "--format", "json", "--top", "10", "-o", "found.json"]
    assert main(command) == 0
    found = json.loads(Path("found.json").read_text())
    assert len(found) == 9
    probabilities = expected(run, node)
    for each in found:
        row = probabilities[int(Path(each["image"]).stem)]
        values = [one["probability"] for one in each["classes"]]
        assert values == pytest.approx(row.sort(descending=True).values.tolist(), rel=1e-4)
        assert each["classes"][0]["class"] == str(int(row.argmax()))


def test_table_of_files_goes_through_a_pipe(run: Path, images: Path) -> None:
    command = [sys.executable, "-m", "timm_ktg.predict", run, "images/more", "images/0.png"]
    done = subprocess.run([*map(str, command), "--top", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    files = [*(f"images/more/{number}.png" for number in range(5, 9)), "images/0.png"]
    assert [row["image"] for row in rows] == [file for file in files for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * 5
    assert all(0 < float(row["probability"]) <= 1 for row in rows)


@pytest.mark.parametrize("flags", [(), ("--format", "json")], ids=["csv", "json"])
def test_name_that_is_not_utf8_is_written_with_escapes(
    run: Path, images: Path, flags: tuple[str, ...]
) -> None:
    os.rename(images / "0.png", os.fsencode(images) + b"/caf\xe9.png")
    command = [sys.executable, "-m", "timm_ktg.predict", str(run), "images", "--top", "1", *flags]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, text=True, env=strict)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(r"images/caf\udce9.png") == 1
    assert main([*command[3:], "-o", "found"]) == 0
    assert Path("found").read_text(encoding="utf-8") == done.stdout
    if flags:
        names = [os.fsencode(each["image"]) for each in json.loads(done.stdout)]
        assert b"images/caf\xe9.png" in names


def test_image_of_another_size_and_kind_is_prepared(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open("images/0.png") as image:
        image.convert("L").resize((40, 30)).save("gray.bmp")
    assert main([str(run), "gray.bmp", "--top", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10  # there are no more classes


def test_linked_folders_are_followed_and_each_is_read_once(workplace: Path) -> None:
    for name in (
        "photos/own/0.png",
        "photos/own/deep/1.png",
        "elsewhere/more/2.png",
        "alone/3.png",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for link, to in {
        "photos/a": "photos/own",  # a second way to what is below anyway
        "photos/b": "elsewhere",
        "photos/own/up": "photos",
        "elsewhere/more/back": "photos",
        "elsewhere/more/on": "alone",
        "photos/nowhere": "nothing",
        "photos/itself": "photos/itself",
        "photos/4.png": "alone/3.png",  # a linked file
    }.items():
        Path(link).symlink_to(workplace / to)
    found = [each.as_posix() for each in find_images([Path("photos")])]
    assert found == [
        "photos/4.png",
        "photos/b/more/2.png",
        "photos/b/more/on/3.png",
        "photos/own/0.png",
        "photos/own/deep/1.png",
    ]


def test_broken_image_costs_a_line_and_not_the_others(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/broken.png").write_bytes(b"junk")
    assert main([str(run), "images", "--top", "1"]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + 9
    assert shown.err.startswith("images/broken.png: cannot be read: ")
    assert shown.err.count("\n") == 1


def test_wrong_input_costs_a_line(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    for argv, line in {
        ("nowhere", "images"): "nowhere: should be a finished run (summary.json). Found none.",
        (str(run), "image"): "image: should be an image or a folder. Found nothing. Did you mean "
        "`images`?",
        (str(run), "empty"): "empty: should hold images. Found none.",
        (str(run), "images", "--node", "c"): "Nodes: a, b, crowd.",
        (str(run), "images", "-o", "no/x.csv"): "output: no/x.csv should be in a folder that "
        "exists. Found none.",
    }.items():
        capsys.readouterr()
        assert main(argv) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        assert line in shown.err


def test_top_below_one_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), "images", "--top", "0"])
    assert "--top: should be 1 or more. Found 0" in capsys.readouterr().err
