"""Every file under recipes/: its header, the paper's settings, and one update of its graph."""

import math
import re
import shlex
from functools import cache
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator

from tests.tiny_data import rows, save, save_images
from timm_ktg.graph.weights import export_node
from timm_ktg.recipe.command_line import Command, parse_command
from timm_ktg.recipe.recipe import Recipe, bundled_recipes, load_recipe, read_recipe
from timm_ktg.recipe.schedule import build_scheduler
from timm_ktg.train.loop import start_epoch, train_epoch
from timm_ktg.train.training import build_training

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "recipes"
ALL = [
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.rglob("*.yaml")
    if path.name != "wandb-sweep.yaml"  # see test_tracking.py
]
# For searches see test_bundled_searches.py.
NAMES = [name for name in ALL if "search" not in read_recipe(FOLDER / f"{name}.yaml")]
PAPERS = [name for name in NAMES if "/" in name and not name.startswith("presets/")]
RUN = "# Run: accelerate launch -m timm_ktg.train"

# The data sets on the hub: classes, columns, splits.
HUB: dict[str, tuple[int, list[str], list[str]]] = {
    "uoft-cs/cifar10": (10, ["img", "label"], ["train", "test"]),
    "uoft-cs/cifar100": (100, ["img", "fine_label", "coarse_label"], ["train", "test"]),
    "zh-plus/tiny-imagenet": (200, ["image", "label"], ["train", "valid"]),
}
# The models of the nodes, and what the paper says of the target.
R32, R110, WRN = "resnet32_cifar", "resnet110_cifar", "wrn28_2_cifar"
MODELS = {
    "label-only-resnet32": [R32],
    "label-only-resnet110": [R110],
    "label-only-wrn28_2": [WRN],
    "kd": [R32, WRN],
    "dml-2": [R32, WRN],
    "dml-3": [R32, WRN, R32],
    "dml-4": [R32, WRN, R32, R110],
}
FIGURES = {
    "cifar10/label-only-resnet32": "92.99 % top-1 (Tab. 1)",
    "cifar10/label-only-resnet110": "94.01 % top-1 (Tab. 1)",
    "cifar10/label-only-wrn28_2": "94.40 % top-1 (Tab. 1)",
    "cifar100/label-only-resnet32": "70.71 ± 0.39 % top-1 (Tab. 2",
    "cifar100/label-only-resnet110": "72.59 ± 0.54 % top-1 (Tab. 1",
    "cifar100/label-only-wrn28_2": "74.60 ± 0.38 % top-1 (Tab. 1",
    "cifar100/kd": "71.88 ± 0.78 % top-1 (Tab. 2",
    "cifar100/dml-2": "72.62 % top-1 (Tab. 3",
    "cifar100/dml-3": "72.77 % top-1 (Tab. 3",
    "cifar100/dml-4": "72.86 % top-1 (Tab. 3",
    "tiny-imagenet/label-only-resnet32": "52.89 % top-1 (Tab. 1)",
    "tiny-imagenet/label-only-resnet110": "55.49 % top-1 (Tab. 1)",
    "tiny-imagenet/label-only-wrn28_2": "58.60 % top-1 (Tab. 1)",
}
# Flags that let own-images run on 32x32 images without a network or other processes, and change in
# one update, because timm's random ResNet starts with residual branches that are zero.
SMALL_AND_OFFLINE = [
    *("--data.dataset", "data/own", "--data.img-size", "32", "--data.workers", "0"),
    *("--graph.nodes.student.pretrained", "false", "--graph.nodes.teacher.pretrained", "false"),
    *("--graph.nodes.student.model-kwargs", '{"zero_init_last": false}'),
]

each_recipe = pytest.mark.parametrize("name", sorted(NAMES))
each_paper_recipe = pytest.mark.parametrize("name", sorted(PAPERS))


@pytest.fixture(scope="session")
def provided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and weights for every recipe, as the hub and earlier runs would have left them."""
    folder = tmp_path_factory.mktemp("bundled")
    for name, (classes, keys, splits) in HUB.items():
        save(folder / "data" / name, **{split: rows(4, classes, keys) for split in splits})
    save_images(folder / "data" / "own", train=rows(4, side=40), test=rows(3, side=40))
    for name in NAMES:
        values = read_recipe(FOLDER / f"{name}.yaml")
        for node in values["graph"]["nodes"].values():
            if "checkpoint_path" in node:
                classes, *_ = HUB.get(values["data"]["dataset"], (10,))
                model = timm.create_model(node["model"], num_classes=classes)
                export_node(model, folder / node["checkpoint_path"])
    return folder


@pytest.fixture(autouse=True)
def links(workplace: Path, provided: Path) -> None:
    for path in provided.iterdir():
        Path(path.name).symlink_to(path)


@cache
def loaded(name: str) -> Recipe:
    return load_recipe(name)


def small(name: str) -> Command:
    """The command in a recipe's header, changed to use the small data."""
    dataset = read_recipe(FOLDER / f"{name}.yaml")["data"]["dataset"]
    flags = ["--data.dataset", f"data/{dataset}"] if dataset in HUB else []
    if name == "own-images":
        flags = SMALL_AND_OFFLINE
    [command] = [line for line in header(name) if line.startswith(RUN)]
    return parse_command([*shlex.split(command.removeprefix(RUN)), *flags], "prog")


def header(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[: next(number for number, line in enumerate(lines) if line[:1] != "#")]


def test_recipes_are_there_and_all_are_bundled() -> None:
    assert {"digits", "own-images"} <= set(NAMES) and set(ALL) == bundled_recipes().keys()
    folders = {name.split("/")[0] for name in PAPERS}
    assert folders == {"cifar10", "cifar100", "tiny-imagenet"}
    dml = {f"dml-{nodes}" for nodes in (2, 3, 4)}
    for folder in folders:
        own = {name.split("/")[1] for name in PAPERS if name.startswith(f"{folder}/")}
        assert own >= dml | {name for name in MODELS if name.startswith("label-only")}
    assert "cifar100/kd" in NAMES


@each_recipe
def test_header_says_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = header(name)
    assert len(lines[0]) > 20 and not lines[0].startswith(("# Run", "# Paper", "# Needs"))
    assert re.search(r"(^# |\. )Paper: .*\. Measured: .+\.$", "\n".join(lines), re.MULTILINE)
    [command] = [line for line in lines if line.startswith("# Run:")]
    # Without an argument the main job runs `digits`.
    assert re.match(f"{RUN} {name}( |$)", command) or (name, command) == ("digits", RUN)


@each_recipe
def test_recipe_is_built_and_stepped(name: str) -> None:
    command = small(name)
    recipe = command.recipe
    assert command.name == name
    training = build_training(recipe, Accelerator())
    graph, optimizer = training.graph, training.optimizer
    assert set(graph.members) == set(recipe.graph.nodes) and not graph.left_out
    before = {
        node: [tensor.clone() for tensor in graph.model(node).state_dict().values()]
        for node in graph.networks
    }
    weights = {node: [p.clone() for p in graph.model(node).parameters()] for node in graph.learning}
    metrics = train_epoch(training, islice(start_epoch(training), 1))
    assert all(math.isfinite(value) for value in metrics.values())
    assert {f"train/loss/{edge}" for edge in graph.edges} <= metrics.keys()
    for node in graph.learning:
        after = list(graph.model(node).parameters())
        changed = [not torch.equal(*pair) for pair in zip(weights[node], after, strict=True)]
        assert all(changed), f"{node}: {changed.count(False)} of {len(changed)} stayed"
    for node in graph.frozen:
        after = list(graph.model(node).state_dict().values())
        assert all(torch.equal(*pair) for pair in zip(before[node], after, strict=True))
    learned = [p for node in graph.learning for p in graph.model(node).parameters()]
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in learned} and len(owned) == len(learned)
    if name in PAPERS:
        assert all(group["weight_decay"] == 5e-4 for group in optimizer.param_groups)
        assert all(group["nesterov"] for group in optimizer.param_groups)


@each_paper_recipe
def test_recipe_has_the_papers_settings(name: str) -> None:
    recipe = loaded(name)
    data, train = recipe.data, recipe.train
    classes, keys, splits = HUB[data.dataset]
    assert data.dataset.split("/")[1] == name.split("/")[0] and classes
    assert data.input_key == keys[0] and data.target_key == keys[1]
    assert [data.train_split, data.test_split] == splits and data.val_split is None
    assert (data.holdout, data.pipeline, data.img_size) == (0, "memory", None)
    assert (data.pad, data.hflip, data.mixes) == (4, 0.5, False)
    assert (train.opt, train.lr, train.momentum, train.opt_kwargs) == ("sgd", 0.1, 0.9, {})
    assert (train.weight_decay, train.filter_bias_and_bn) == (5e-4, False)
    assert (train.batch_size, train.grad_accum_steps) == (64, 1)
    assert (train.smoothing, train.clip_grad) == (0, None)
    assert train.epochs == (80 if name.startswith("tiny-imagenet/") else 200)


@each_paper_recipe
def test_learning_rate_falls_when_the_paper_says(name: str) -> None:
    train = loaded(name).train
    tiny = name.startswith("tiny-imagenet/")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], train.lr)
    scheduler, epochs = build_scheduler(train, optimizer, updates_per_epoch=2)
    rates = []
    for epoch in range(epochs):
        for update in (1, 2):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step_update(2 * epoch + update)
        scheduler.step(epoch + 1)
    falls = (40, 60, 70) if tiny else (60, 120, 180)
    expected = [0.1 * 0.1 ** sum(epoch >= fall for fall in falls) for epoch in range(epochs)]
    assert epochs == (80 if tiny else 200)
    assert rates == pytest.approx([rate for rate in expected for _ in (1, 2)])


@each_paper_recipe
def test_graph_is_the_papers(name: str) -> None:
    graph = loaded(name).graph
    models = MODELS[name.split("/")[1]]
    assert graph.target == next(iter(graph.nodes)) and graph.reduction == "sum"
    assert [node.model for node in graph.nodes.values()] == models
    assert all(not node.model_kwargs and not node.pretrained for node in graph.nodes.values())
    edges: dict[Any, Any] = {
        (source, name): (edge.gate, edge.temperature, edge.loss)
        for name, node in graph.nodes.items()
        for source, edge in node.learns_from.items()
    }
    if name.endswith("/kd"):
        student, teacher = graph.nodes
        expected = {("label", student): 1.0, (teacher, student): 2.0}
    else:
        pairs = [*permutations(graph.nodes, 2), *(("label", node) for node in graph.nodes)]
        expected = dict.fromkeys(pairs, 1.0)
    assert edges == {pair: ("through", T, None) for pair, T in expected.items()}
    figure = FIGURES.get(name, "no figure available.")
    assert f"Paper: {figure}" in "\n".join(header(name))
