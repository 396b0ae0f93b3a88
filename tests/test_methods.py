"""The page of methods says what the code says, and its commands work."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

import timm_ktg as ktg
from tests import methods
from timm_ktg.recipe.build import build_edges, build_nodes, connect
from timm_ktg.recipe.command_line import parse_command

pytestmark = pytest.mark.usefixtures("workplace")

NAMES = [name for section in methods.sections().values() for name in section]
KINDS = methods.sections()


def command_of(name: str) -> list[str]:
    """The arguments of the command that the page gives for a method."""
    text = methods.PAGE.read_text(encoding="utf-8").partition(f"\n### {name}\n")[2]
    (found,) = re.findall(r"^- Recipe: .*, `(.*)`$", text.partition("\n##")[0], re.MULTILINE)
    return shlex.split(found.removeprefix(methods.RUN))


def test_page_is_what_the_script_writes() -> None:
    again = "recipes/METHODS.md is old; write it anew: python -m tests.methods"
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page(), again


def test_page_has_the_figures_of_the_evidence_beside_their_control() -> None:
    for each in (note for notes in methods.NOTES.values() for note in notes.get("evidence", [])):
        page = (methods.EVIDENCE / f"{each.get('page', 'results')}.md").read_text(encoding="utf-8")
        shown = r"(.+): (\S+ ± \S+ \(n=[57]\)) on CIFAR-100 .*?\)\)(?:, over .*? (\S+ \[.*\]))?"
        ((name, figure, gap),) = re.findall(shown, methods.in_evidence(**each))
        lines = [line for line in page.splitlines() if f"| {name} | {figure} |" in line]
        assert len(lines) == 1 and (gap in lines[0] if gap else name == "labels alone")


def test_notes_are_about_all_methods_and_no_other() -> None:
    assert len(NAMES) > 20 and sorted(methods.NOTES) == sorted(NAMES)


def test_page_leaves_out_what_another_package_registers() -> None:
    @ktg.register_loss
    def foreign(
        source: ktg.NodeOutput, destination: ktg.NodeOutput, labels: Tensor, *, temperature: float
    ) -> Tensor:
        return destination.logits.sum(-1)

    assert "foreign" in ktg.list_losses() and "### foreign" not in methods.page()


@pytest.mark.parametrize("name", NAMES)
def test_command_on_the_page_trains_with_the_method(name: str) -> None:
    recipe = parse_command(command_of(name), "prog").recipe
    # Teachers would be trained first.
    graph = connect(recipe, build_nodes(recipe, 10), build_edges(recipe), None, None)
    if name == "cutoff":
        assert "cutoff" in {edge.gate for edge in recipe.graph.edges.values()}
    elif name in KINDS["Gates"]:
        assert name in {str(edge.gate) for edge in graph.edges}
    elif name in KINDS["Losses"]:
        assert name in {str(edge.loss) for edge in graph.edges}
    outputs = graph(torch.randn(12, 3, 8, 8))  # 12 images, or some views of fewer
    graph.build_edges(outputs)
    losses = graph.losses(outputs, torch.arange(12) % 10, progress=0.5)
    losses.total.backward()
    assert losses.total.isfinite()


def test_links_on_the_page_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", methods.PAGE.read_text(encoding="utf-8"))
    assert len(links) > 20
    missing = [link for link in links if not Path(methods.PAGE.parent, link).is_file()]
    assert not missing
