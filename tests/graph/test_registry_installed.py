"""A gate of another package, installed by pip as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "my_gates"
version = "1.0"

[project.entry-points."timm_ktg.gates"]
confident = "my_gates:confident"

[tool.hatch.build.targets.wheel]
only-include = ["my_gates.py"]
"""

MODULE = '''
"""Gates of one's own."""


def confident(losses, context, *, threshold=0.5):
    """Pass the samples the source is sure of."""
    return losses * (context.source.logits.softmax(-1).amax(-1) >= threshold)
'''

USE = """
import json, sys
import torch
import timm_ktg as ktg
from torch import nn

found = {"listed": "confident" in ktg.list_gates(), "imported": "my_gates" in sys.modules}
plain, sure = ktg.create_gate("confident"), ktg.create_gate("confident", threshold=0.9)
found["file"] = sys.modules["my_gates"].__file__
found["names"] = [str(plain), str(sure)]
for gate in (plain, sure):
    ktg.check_gate(gate)
try:
    ktg.create_gate("confident", treshold=0.9)
except ValueError as error:
    found["error"] = str(error)

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

student, teacher = net(), net()
graph = ktg.KnowledgeTransferGraph(
    [ktg.Node("student", student), ktg.Node("teacher", teacher, pretrained=True)],
    [ktg.Edge("teacher", "student", gate=sure)],
    target="student",
)
# softmax([log 3, 0]) = (0.75, 0.25) and softmax([log 19, 0]) = (0.95, 0.05): only the second passes
outputs = graph(torch.randn(2, 3, 2, 2))
outputs["teacher"] = ktg.NodeOutput(torch.tensor([[3.0, 1.0], [19.0, 1.0]]).log())
losses = graph.losses(outputs, torch.tensor([0, 1]))
losses.total.backward()
kl = ktg.create_loss("kl_div")
each = kl(outputs["teacher"], outputs["student"], None, temperature=1.0)
found["loss"], found["expected"] = losses.total.item(), each[1].item() / 2
found["passed"] = losses.passed["teacher->student"].item()
found["gradient"] = student[1].weight.grad.abs().sum().item()
print(json.dumps(found))
"""


def run(*command: str, **environment: str) -> str:
    """Return the output of a command; on failure, raise with its output."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    project, site = tmp_path_factory.mktemp("my_gates"), tmp_path_factory.mktemp("site")
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "my_gates.py").write_text(MODULE)
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    run(*pip, *offline, "--target", str(site), str(project))
    printed = run(sys.executable, "-c", USE, PYTHONPATH=str(site))
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert Path(result["file"]).parent == site
    return result


def test_installed_gate_is_listed_without_importing_it(found: dict[str, Any]) -> None:
    assert found["listed"]
    assert not found["imported"]


def test_installed_gate_takes_its_arguments(found: dict[str, Any]) -> None:
    assert found["names"] == ["confident", "confident(threshold=0.9)"]
    assert found["error"] == (
        "gate `confident` takes no argument `treshold`. It takes: threshold. "
        "Did you mean `threshold`?"
    )


def test_installed_gate_decides_in_a_graph(found: dict[str, Any]) -> None:
    assert found["passed"] == 0.5
    assert found["loss"] == pytest.approx(found["expected"], rel=1e-6)
    assert found["loss"] > 0
    assert found["gradient"] > 0
