"""What the terminal shows."""

import io
from collections.abc import Iterator

import pytest
import tqdm.std
from torch import nn

import timm_ktg as ktg
from tests.records.result_cases import a_result
from timm_ktg.records.result import Accuracy
from timm_ktg.terminal import run_bar
from timm_ktg.train.show import epoch_line, show_graph, show_result

pytestmark = pytest.mark.slow


@pytest.fixture
def graph() -> ktg.KnowledgeTransferGraph:
    def gate(name: str) -> ktg.Gate:
        return ktg.create_gate(name)

    nodes = [
        ktg.Node("student", nn.Linear(2, 3)),
        ktg.Node("peer", nn.Linear(2, 3, bias=False)),
        ktg.Node("teacher", nn.Linear(400, 3), pretrained=True),
    ]
    edges = [
        ktg.Edge("label", "student"),
        ktg.Edge("peer", "student", gate("correct")),
        ktg.Edge("teacher", "student", gate("linear"), temperature=2.5),
        ktg.Edge("student", "peer", gate("negative_linear")),
        ktg.Edge("teacher", "peer", gate("cutoff")),
    ]
    return ktg.KnowledgeTransferGraph(nodes, edges, "student")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_table_shows_every_edge_with_its_gate_and_every_role(
    graph: ktg.KnowledgeTransferGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    show_graph(graph, {"student": "small", "peer": "other", "teacher": "large"})
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert lines == [
        ["student", "small", "9", "target", "label: through"],
        ["", "", "", "", "peer: correct"],
        ["", "", "", "", "teacher: linear, T=2.5"],
        ["peer", "other", "6", "", "student: negative_linear"],
        ["teacher", "large", "1,203", "frozen", "-"],
    ]


def test_table_shows_the_arguments_of_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    def confident(losses: object, context: object, *, threshold: float = 0.8) -> object:
        return losses

    ktg.register_gate(confident)
    edge = ktg.Edge("label", "a", ktg.create_gate("confident", threshold=0.9))
    node = ktg.Node("a", nn.Linear(2, 3))
    show_graph(ktg.KnowledgeTransferGraph([node], [edge], "a"), {"a": "small"})
    assert "label: confident(threshold=0.9)" in capsys.readouterr().out


def test_table_in_a_file_keeps_long_names_whole(
    graph: ktg.KnowledgeTransferGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k"
    show_graph(graph, {"student": long, "peer": "other", "teacher": "large"})
    assert f" {long} " in capsys.readouterr().out


def test_epoch_is_one_line_with_the_target_starred(graph: ktg.KnowledgeTransferGraph) -> None:
    measured = {"epoch": 3, "lr": 0.01, "images_per_second": 1234.5, "seconds": 6.78}
    measured |= {f"train/top1/{name}": 10.0 for name in graph.members}
    line = epoch_line(measured, 120, graph)
    assert line.startswith(
        "epoch   3/120  train top-1 %  student* 10.00  peer 10.00  teacher 10.00"
    )
    assert "lr 0.01" in line and "1234 images/s" in line and "6.8 s" in line
    assert line.count("*") == 1 and "\n" not in line


def test_epoch_shows_validation_where_there_is_one(graph: ktg.KnowledgeTransferGraph) -> None:
    measured = {"epoch": 1, "lr": 0.1, "images_per_second": 1.0, "seconds": 1.0}
    for number, name in enumerate(graph.members):
        measured |= {f"train/top1/{name}": 99.0, f"val/top1/{name}": 50.25 + number}
    line = epoch_line(measured, 9, graph)
    assert "epoch 1/9  val top-1 %  student* 50.25  peer 51.25  teacher 52.25" in line


def test_epoch_shows_the_validation_loss_beside_top1(graph: ktg.KnowledgeTransferGraph) -> None:
    measured = {"epoch": 1, "lr": 0.1, "images_per_second": 1.0, "seconds": 1.0}
    for name in graph.members:
        measured |= {f"val/top1/{name}": 50.25, f"val/loss/{name}": 0.125}
    assert "val top-1 % (loss)  student* 50.25 (0.1250)  peer" in epoch_line(measured, 9, graph)


def test_result_marks_the_target_and_names_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = {"student": Accuracy(71.125, 90.0), "peer": Accuracy(70.0, 89.0)}
    result = a_result({"student": 71.125}, epochs=20, nodes=nodes)
    show_result(result, [("weights", "runs/x/nodes"), ("resume", "--resume runs/x")])
    out = capsys.readouterr().out
    assert [cells(line) for line in out.splitlines() if "│" in line] == [
        ["student (target)", "71.12", "90.00"],
        ["peer", "70.00", "89.00"],
    ]
    title = " ".join(out.split("┏")[0].split())
    assert title == "Result on test images, after 20 epochs"
    assert "weights    runs/x/nodes\nresume     --resume runs/x\n" in out


class Stream(io.StringIO):
    """Standard error as a file, or as a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, show: bool = True) -> str:
    """The output on standard error of a bar over the last 12 of 36 updates of 20 seconds each."""

    def seconds() -> Iterator[float]:
        return iter(range(0, 10_000, 20))

    clock, stream = seconds(), Stream(terminal)
    monkeypatch.setattr(tqdm.std, "time", lambda: next(clock))
    monkeypatch.setattr("sys.stderr", stream)
    with run_bar(24, 36, show) as bar:
        bar.set_description("epoch 3/3", refresh=False)
        for _ in range(12):
            bar.update()
    return stream.getvalue()


def test_progress_in_a_file_is_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=False)
    lines = text.splitlines()
    assert 1 < len(lines) < 12 and text.endswith("\n")
    assert all("/36 " in line for line in lines)
    assert all(line.startswith("epoch 3/3:") for line in lines[1:])
    assert "\r" not in text and "\x1b" not in text
    counts = [int(line.split("/36 ")[0].split("|")[-1]) for line in lines]
    assert counts == sorted(set(counts))


def test_progress_on_a_terminal_draws_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert text.count("\r") > 1 and "epoch 3/3" in text


def test_progress_of_other_processes_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False, show=False) == ""
