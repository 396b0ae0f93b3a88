"""`python -m timm_ktg.export`: files that compute what a node computes, without its code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timm_ktg as ktg
import timm_ktg.use.exporting
from timm_ktg.export import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("workplace"),
    # torch.export and the exporter to ONNX use what torch and copyreg deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

# Prints logits of a file for images, with torch alone or with onnxruntime alone.
ALONE = {
    "torch": """
import sys, torch
model = torch.export.load("a.torch").module()
torch.save(model(torch.load("images.pt")), "logits.pt")
assert not any(name.startswith("timm") for name in sys.modules)
""",
    "onnx": """
import sys, onnxruntime, numpy
session = onnxruntime.InferenceSession("a.onnx", providers=["CPUExecutionProvider"])
numpy.save("logits.npy", session.run(None, {"images": numpy.load("images.npy")})[0])
assert "torch" not in sys.modules
""",
}


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def need(form: str) -> None:
    if form == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.parametrize("node", [None, "a"])
def test_torch_file_computes_what_the_node_computes(run: Path, node: str | None) -> None:
    flags = [] if node is None else ["--node", node]
    assert main([str(run), "--format", "torch", "-o", "a.torch", *flags]) == 0
    torch.save(images(7), "images.pt")
    alone("torch")
    with torch.inference_mode():
        expected = ktg.load_run(run, node)(images(7))
    torch.testing.assert_close(torch.load("logits.pt"), expected, rtol=1e-5, atol=1e-5)


def test_onnx_file_computes_what_the_node_computes(run: Path) -> None:
    need("onnx")
    import numpy as np

    assert main([str(run), "--format", "onnx", "-o", "a.onnx"]) == 0
    np.save("images.npy", images(7).numpy())
    alone("onnx")
    with torch.inference_mode():
        expected = ktg.load_run(run)(images(7)).numpy()
    np.testing.assert_allclose(np.load("logits.npy"), expected, rtol=1e-4, atol=1e-4)


def alone(form: str) -> None:
    command = [sys.executable, "-c", ALONE[form]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_file_says_how_to_prepare_images(run: Path) -> None:
    assert main([str(run), "--format", "torch", "-o", "a.torch"]) == 0
    told = {"timm_ktg": ""}
    with Path("a.torch").open("rb") as file:
        torch.export.load(file, extra_files=told)
    facts, data = json.loads(told["timm_ktg"]), json.loads((run / "summary.json").read_text())
    assert facts["class_names"] == list("0123456789") and facts["node"] == "crowd"
    assert facts["mean"] == data["data"]["mean"] and facts["crop_mode"] == "squash"


def test_file_that_computes_something_else_is_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = timm_ktg.use.exporting._write_torch

    def wrong(model: torch.nn.Module, *arguments: object) -> object:
        exported = write(model, *arguments)  # type: ignore[arg-type]
        return lambda images: exported(images) + 0.1

    monkeypatch.setattr(timm_ktg.use.exporting, "_write_torch", wrong)
    Path("a.torch").write_text("an older file")
    assert main([str(run), "--format", "torch", "-o", "a.torch"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("a.torch: was not kept: its logits should be within")
    assert said.count("\n") == 1
    assert Path("a.torch").read_text() == "an older file" and os.listdir() == ["a.torch"]


def test_wrong_input_costs_a_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(run), "--format", "torch", "-o"]
    assert main([*command, "no/such/a.torch"]) == 1
    assert capsys.readouterr().err.startswith("no/such/a.torch: cannot be written: ")
    assert main([*command, "a.torch", "--node", "d"]) == 2
    assert "has no node `d`. Nodes: a, b, crowd." in capsys.readouterr().err
    monkeypatch.setattr(timm_ktg.use.exporting, "find_spec", lambda name: None)
    assert main([str(run), "--format", "onnx", "-o", "a.onnx"]) == 2
    said = "--format: onnx needs onnx, onnxscript, onnxruntime: pip install 'timm_ktg[onnx]'\n"
    assert capsys.readouterr().err == said and not os.listdir()
