"""Every field of a recipe as a flag."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import timm_ktg as ktg
from tests.recipe_cases import LABEL_ONLY, TWO, recipe, save_weights, write
from tests.tiny_data import small_digits
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.command_line import Command, parse_command, recipe_groups
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.flags import overridden
from timm_ktg.recipe.node_config import EdgeConfig, NodeConfig
from timm_ktg.recipe.recipe import check_recipe, save_recipe
from timm_ktg.recipe.train_config import TrainConfig
from timm_ktg.train.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workplace")]

# field: (typed text, value), none of them the default
MEMORY_DATA = {
    "dataset": ("a-b/c=d", "a-b/c=d"),
    "dataset_config": ("plain", "plain"),
    "input_key": ("img", "img"),
    "target_key": ("fine_label", "fine_label"),
    "class_map": ("classes.txt", "classes.txt"),
    "in_chans": ("3", 3),
    "aug_repeats": ("3", 3),
    "train_split": ("part", "part"),
    "test_split": ("null", None),
    "holdout": ("7", 7),
    "split_seed": ("3", 3),
    "images_per_class": ("2", 2),
    "img_size": ("16", 16),
    "mean": ("[0.5, 0.4, 0.3]", (0.5, 0.4, 0.3)),
    "std": ("1,1,0.5", (1.0, 1.0, 0.5)),
    "hflip": ("0", 0.0),
    "pad": ("2", 2),
    "cache": ("false", False),
}
TIMM_DATA = {
    "pipeline": ("timm", "timm"),
    "in_chans": ("1", 1),
    "pad": ("4", 4),  # the default, because the recipe below has another value
    "holdout": ("0", 0),
    "val_split": ("valid", "valid"),
    "train_crop_mode": ("rkrc", "rkrc"),
    "scale": ("[0.5,1]", (0.5, 1.0)),
    "ratio": ("[1,2]", (1.0, 2.0)),
    "vflip": ("0.25", 0.25),
    "color_jitter": ("0", 0.0),
    "color_jitter_prob": ("0.5", 0.5),
    "grayscale_prob": ("0.2", 0.2),
    "gaussian_blur_prob": ("0.1", 0.1),
    "aa": ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
    "reprob": ("0.25", 0.25),
    "remode": ("const", "const"),
    "recount": ("2", 2),
    "interpolation": ("bicubic", "bicubic"),
    "crop_pct": ("0.9", 0.9),
    "no_aug": ("true", True),
    "workers": ("0", 0),
    "mixup": ("0.8", 0.8),
    "cutmix": ("1", 1.0),
    "cutmix_minmax": ("[0.2,0.8]", (0.2, 0.8)),
    "mixup_prob": ("0.5", 0.5),
    "mixup_switch_prob": ("0.25", 0.25),
    "mixup_mode": ("elem", "elem"),
    "mixup_off_epoch": ("3", 3),
}
STREAMED_DATA = {
    "pipeline": ("timm", "timm"),
    "pad": ("4", 4),
    "holdout": ("0", 0),
    "streaming": ("true", True),
    "train_num_samples": ("1000", 1000),
    "num_classes": ("12", 12),
    "shuffle_buffer": ("64", 64),
    "aug_splits": ("2", 2),
    "resplit": ("true", True),
}
TRAIN = {
    "epochs": ("3", 3),
    "batch_size": ("128", 128),
    "eval_metric": ("loss", "loss"),
    "eval_interval": ("2", 2),
    "log_interval": ("10", 10),
    "validation_batch_size": ("256", 256),
    "grad_accum_steps": ("2", 2),
    "seed": ("42", 42),
    "opt": ("adamw", "adamw"),
    "lr": ("null", None),
    "lr_base": ("0.2", 0.2),
    "lr_base_size": ("512", 512),
    "lr_base_scale": ("sqrt", "sqrt"),
    "momentum": ("0.5", 0.5),
    "weight_decay": ("0", 0.0),
    "filter_bias_and_bn": ("true", True),
    "layer_decay": ("0.7", 0.7),
    "layer_decay_min_scale": ("0.1", 0.1),
    "opt_kwargs": ('{"betas": [0.9, 0.95], "eps": 1e-9}', {"betas": [0.9, 0.95], "eps": 1e-9}),
    "sched": ("poly", "poly"),
    "lr_cycle_limit": ("2", 2),
    "lr_cycle_mul": ("1.5", 1.5),
    "lr_cycle_decay": ("0.25", 0.25),
    "lr_k_decay": ("2", 2.0),
    "lr_noise": ("[0.4,0.9]", [0.4, 0.9]),
    "lr_noise_pct": ("0.5", 0.5),
    "lr_noise_std": ("2", 2.0),
    "sched_on_updates": ("true", True),
    "decay_rate": ("0.5", 0.5),
    "min_lr": ("1e-6", 1e-6),
    "warmup_epochs": ("1", 1),
    "warmup_lr": ("1e-4", 1e-4),
    "warmup_prefix": ("true", True),
    "cooldown_epochs": ("1", 1),
    "smoothing": ("0.1", 0.1),
    "head_init_scale": ("0.001", 0.001),
    "head_init_bias": ("-4.6", -4.6),
    "clip_grad": ("1", 1.0),
    "clip_mode": ("agc", "agc"),
    "mixed_precision": ("bf16", "bf16"),
    "grad_checkpointing": ("true", True),
    "device": ("cuda:1", "cuda:1"),
    "sync_bn": ("true", True),
    "model_ema": ("true", True),
    "model_ema_decay": ("0.99", 0.99),
    "model_ema_warmup": ("true", True),
    "teacher_table": ("never", "never"),
    "torchcompile": ("true", True),
    "cuda_graph": ("auto", "auto"),
    "deterministic": ("true", True),
    "channels_last": ("true", True),
}
STEPPED_TRAIN = {"sched": ("step", "step"), "decay_epochs": ("2.5", 2.5)}
MILESTONES = {"sched": ("multistep", "multistep"), "decay_milestones": ("[3,4]", [3, 4])}
NODE = {
    "model": ("resnet14_cifar", "resnet14_cifar"),
    "model_kwargs": ('{"stem_stride": 2}', {"stem_stride": 2}),
    "pretrained": ("true", True),
    "checkpoint_path": ("w.safetensors", "w.safetensors"),
    "train_first": ("false", False),  # a node that learns cannot be trained first
    "seed": ("7", 7),
    "taps": ("[layer1,layer2]", ["layer1", "layer2"]),
    "img_size": ("16", 16),
}
EDGE = {
    "gate": ("confident", "confident"),
    "gate_kwargs": ('{"threshold": 0.5}', {"threshold": 0.5}),
    "loss": ("attention", "attention"),
    "loss_kwargs": ('{"p": 1}', {"p": 1}),
    "temperature": ("3", 3.0),
    "weight": ("0.5", 0.5),
    "taps": ("layer3", "layer3"),
    "head": ("dist", "dist"),
}
STUDENT = "--graph.nodes.student"
PEER = f"{STUDENT}.learns_from.helper"


def parse(*argv: str) -> Command:
    return parse_command(argv, "prog")


def parsed(*argv: str) -> Any:
    return parse(write(recipe(TWO, LABEL_ONLY, data={"holdout": 2})), *argv).recipe


def refusal(*argv: str) -> str:
    """The one-line error for a wrong command line."""
    with pytest.raises(RecipeError) as caught:
        parse(*argv)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    return str(caught.value)


def test_tables_name_every_field() -> None:
    data = MEMORY_DATA.keys() | TIMM_DATA.keys() | STREAMED_DATA.keys()
    assert data == DataConfig.model_fields.keys()
    train = TRAIN.keys() | STEPPED_TRAIN.keys() | MILESTONES.keys()
    assert train | {"patience_epochs"} == TrainConfig.model_fields.keys()  # only `plateau` has it
    assert NODE.keys() | {"learns_from"} == NodeConfig.model_fields.keys()
    assert EDGE.keys() == EdgeConfig.model_fields.keys()


@pytest.mark.parametrize("timms_style", [False, True], ids=["ours", "timms"])
@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("data", MEMORY_DATA),
        ("data", TIMM_DATA),
        ("data", STREAMED_DATA),
        ("train", TRAIN),
        ("train", STEPPED_TRAIN),
        ("train", MILESTONES),
        ("graph.nodes.student", NODE),
        ("graph.nodes.student.learns_from.helper", EDGE),
    ],
    ids=[
        "data in memory",
        "data by timm",
        "data streamed",
        "train",
        "step",
        "multistep",
        "node",
        "edge",
    ],
)
def test_any_field_can_be_overridden(
    where: str, fields: dict[str, tuple[str, Any]], timms_style: bool
) -> None:
    def confident(losses: Any, context: Any, *, threshold: float = 0.8) -> Any:
        return losses

    ktg.register_gate(confident)
    save_weights("w.safetensors")
    flags: list[str] = []
    for name, (text, _) in fields.items():
        flag = f"--{where}.{name}"
        flags += ["--" + f"{flag[2:].replace('_', '-')}={text}"] if timms_style else [flag, text]
    found: Any = parsed(*flags)
    for part in where.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert {name: getattr(found, name) for name in fields} == {
        name: value for name, (_, value) in fields.items()
    }


@pytest.mark.parametrize("field", ["pretrained", "train_first"])
def test_off_on_a_command_line_gives_a_frozen_node_no_weights(field: str) -> None:
    file = write(recipe(TWO, {field: True}))
    with pytest.raises(RecipeError, match=r"graph\.nodes\.helper: learns from nothing"):
        parse_command([file, f"--graph.nodes.helper.{field}", "false"], "prog")


def test_what_is_neither_on_nor_off_costs_one_line() -> None:
    file = write(recipe(TWO, {"train_first": True}))
    with pytest.raises(RecipeError) as refused:
        parse_command([file, "--graph.nodes.helper.train_first", "maybe"], "prog")
    (line,) = refused.value.problems
    assert line.endswith("train_first: should be true or false. Found 'maybe'.")


def test_structure_of_the_graph_can_be_overridden() -> None:
    graph = parsed(
        *("--graph.target", "helper", "--graph.reduction=mean", "--graph.keep", "[student]"),
        *("--graph.nodes.helper.learns_from.student", "linear"),
        *(f"{STUDENT}.learns-from.label", "cutoff", f"{PEER}.temperature", "2"),
    ).graph
    assert (graph.target, graph.reduction, graph.keep) == ("helper", "mean", ["student"])
    assert graph.nodes["helper"].learns_from["student"] == EdgeConfig(gate="linear")
    assert graph.nodes["student"].learns_from["label"] == EdgeConfig(gate="cutoff")
    assert graph.nodes["student"].learns_from["helper"] == EdgeConfig(temperature=2)


@pytest.mark.parametrize(
    "flags",
    [
        (PEER, "linear", f"{PEER}.temperature", "3"),
        (f"{PEER}.temperature", "3", PEER, "linear"),
        (f"{PEER}.gate", "linear", f"{PEER}.temperature", "3"),
        (PEER, '{"gate": "linear", "temperature": 3}'),
    ],
    ids=["word first", "word last", "field by field", "json"],
)
def test_gate_of_an_edge_and_its_temperature_can_be_given_together(flags: list[str]) -> None:
    edge = parsed(*flags).graph.nodes["student"].learns_from["helper"]
    assert edge == EdgeConfig(gate="linear", temperature=3)


@pytest.mark.parametrize("typed", [["[3,4]"], ["3,4"], ["3", "--train.decay_milestones", "4"]])
def test_list_can_be_typed_in_three_ways(typed: list[str]) -> None:
    found = parsed("--train.sched", "multistep", "--train.decay_milestones", *typed)
    assert found.train.decay_milestones == [3, 4]


def test_null_is_no_value_and_refused_where_one_is_needed() -> None:
    flags = ("--data.test_split=null", "--train.clip_grad", "null", "--data.mean", "null")
    found = parsed("--train.clip-grad", "1", *flags)
    assert (found.data.test_split, found.train.clip_grad, found.data.mean) == (None, None, None)
    assert refusal(write(recipe()), "--train.opt", "null").startswith("train.opt: ")


def test_arguments_may_be_typed_as_timm_types_them() -> None:
    assert parsed("--train.opt-kwargs", "nesterov=False").train.opt_kwargs == {"nesterov": False}


@pytest.mark.parametrize("typed", ["eps=1e-9,betas=[0.9, 0.95]", "{eps: 1e-9, betas: [0.9, 0.95]}"])
def test_arguments_may_hold_lists(typed: str) -> None:
    found = parsed("--train.opt", "adamw", "--train.opt_kwargs", typed).train
    assert found.opt_kwargs == {"eps": 1e-9, "betas": [0.9, 0.95]}


def test_text_that_looks_like_a_number_is_what_its_field_wants() -> None:
    flags = ("--train.seed", "010", "--tracking.project", "010", "--tracking.tags", "[1, 5e-4]")
    found = parsed(*flags)
    assert (found.train.seed, found.tracking.project) == (10, "010")
    assert found.tracking.tags == ["1", "5e-4"]


def test_recipe_may_stand_before_and_after_flags() -> None:
    path = write(recipe())
    for flags in (
        (path, "--train.lr", "0.5", "--dry-run"),
        ("--train.lr", "0.5", path, "--dry-run"),
        ("--dry-run", f"{STUDENT}.seed", "3", "--train.lr=0.5", path),
    ):
        command = parse(*flags)
        assert (command.recipe.data.dataset, command.recipe.train.lr) == (small_digits(), 0.5)
        assert command.dry_run and not command.overwrite


def test_flags_beside_the_recipe_are_understood() -> None:
    command = parse("digits", "--output-dir", "some-where", "--overwrite")
    assert (command.name, command.output_dir) == ("digits", Path("some-where"))
    assert (command.overwrite, command.dry_run, command.resume) == (True, False, None)
    assert parse().name == "digits" and parse().output_dir is None


def test_seeds_may_be_followed_by_a_recipe() -> None:
    path = write(recipe())
    assert parse("--seeds", "0", "12", path).seeds == (0, 12)
    assert parse(path, "--seeds", "0,1", "--seeds=2", "--dry-run").seeds == (0, 1, 2)
    assert parse(path).seeds == ()


@pytest.mark.parametrize("typed", [["1.5"], ["0", "1.5"], ["x"], ["0", "-1"], ["3", "3"]])
def test_wrong_seeds_cost_one_line(typed: list[str]) -> None:
    line = refusal(write(recipe()), "--seeds", *typed)
    assert "seeds: should be " in line and line.endswith(f"{typed[-1]}.")


def test_seed_beside_seeds_costs_one_line() -> None:
    line = refusal(write(recipe()), "--seeds", "0", "1", "--train.seed", "4")
    assert line == "command line: --train.seed has no effect beside --seeds."


def test_directory_of_a_run_stands_for_its_recipe() -> None:
    Path("runs/mine").mkdir(parents=True)
    write(recipe(TWO, LABEL_ONLY, train={"lr": 0.25}), "runs/mine/recipe.yaml")
    command = parse("runs/mine", "--train.epochs", "3")
    assert (command.name, command.resume, command.recipe.train.lr) == ("mine", None, 0.25)
    assert len(parse(write(recipe()), "--graph", "runs/mine").recipe.graph.nodes) == 2
    Path("empty").mkdir()
    assert refusal("empty").startswith("recipe: `empty` is neither a file nor a bundled recipe.")


def test_ten_nodes_that_all_learn_from_each_other_are_parsed_in_a_moment() -> None:
    names = ["student", *(f"node{number}" for number in range(9))]
    nodes = {
        name: {"model": "resnet8_cifar", "learns_from": dict.fromkeys({*names} - {name}, "linear")}
        for name in names
    }
    path = write({**recipe(), "graph": {"target": "student", "nodes": nodes}})
    flag = f"{STUDENT}.learns_from.node8.temperature"
    start = time.process_time()
    found = parse(path, flag, "2", "--train.lr", "0.5").recipe
    assert time.process_time() - start < 0.5
    assert found.graph.nodes["student"].learns_from["node8"].temperature == 2


def test_environment_gives_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = parse()
    for name in ("OVERWRITE", "DRY_RUN"):
        monkeypatch.setenv(name, "true")
    for name in ("OUTPUT_DIR", "RECIPE", "DATA", "TRAIN", "GRAPH"):
        monkeypatch.setenv(name, "cifar100/dml-2")
    assert parse() == usual
    monkeypatch.setenv("RESUME", "nowhere")
    assert parse() == usual


@pytest.mark.parametrize("name", ["copy", "json", "schema", "model_fields", "dict", "target"])
def test_node_may_be_called_like_an_attribute_of_pydantic(name: str) -> None:
    values = recipe({"learns_from": {"label": "through", name: "through"}}, LABEL_ONLY)
    values["graph"]["nodes"][name] = values["graph"]["nodes"].pop("helper")
    flags = (f"--graph.nodes.{name}.seed", "5", f"{STUDENT}.learns_from.{name}", "linear")
    nodes = parse(write(values), *flags).recipe.graph.nodes
    assert nodes[name].seed == 5 and nodes["student"].learns_from[name].gate == "linear"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train.bach-size", "3"], "--train.bach_size"),
        (["--trian.batch_size=3"], "--trian.batch_size"),
        (["--resum", "x"], "--resum"),
        (["--graph.nodes.studnt.model", "x"], "--graph.nodes.studnt.model"),
        ([f"{STUDENT}.learns_from.helpr", "linear"], f"{STUDENT}.learns_from.helpr"),
        ([f"{PEER}.temprature", "3"], f"{PEER}.temprature"),
    ],
)
def test_unknown_flag_is_refused_with_the_nearest(flags: list[str], said: str) -> None:
    line = refusal(write(recipe(TWO, LABEL_ONLY)), *flags)
    assert line.startswith(f"command line: unrecognized arguments: {said}")
    near = re.search(r"Did you mean `(--[\w.]+)`\?$", line)
    assert near and near[1] != said


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--lr", "--train.lr"),
        ("--batch-size", "--train.batch_size"),
        ("--train.learning_rate", "--train.lr"),
        ("--train.betas", "--train.opt_kwargs"),
        ("--nesterov", "--train.opt_kwargs"),
        ("--nodes.student.seed", f"{STUDENT}.seed"),
    ],
)
def test_flag_under_another_name_is_refused_with_its_own(flag: str, near: str) -> None:
    line = refusal(write(recipe()), flag, "0.5")
    assert line == f"command line: unrecognized arguments: {flag}. Did you mean `{near}`?"


def test_all_unknown_flags_are_named_but_not_their_values() -> None:
    flags = ("--data.tokn", "secret", "--search.storage=postgresql://bob:secret@host/db")
    with pytest.raises(RecipeError) as caught:
        parse(write(recipe()), *flags)
    assert len(caught.value.problems) == 2 and "secret" not in str(caught.value)
    assert "secret" not in refusal(write(recipe()), "--storage=secret")


def test_edges_with_names_have_flags_of_their_own() -> None:
    edges = {"label": "through", "helper/dkd": "linear", "helper/at-2.5": {"temperature": 3.0}}
    values = recipe({"learns_from": edges}, LABEL_ONLY)
    groups = recipe_groups(values)
    node = "graph.nodes.student.learns_from"
    flags = [(f"{node}.helper/dkd.temperature", "2"), (f"{node}.helper/at_2.5", "correct")]
    found = overridden(values, flags, groups)["graph"]["nodes"]["student"]["learns_from"]
    assert found == {
        "label": "through",
        "helper/dkd": {"gate": "linear", "temperature": "2"},
        "helper/at-2.5": {"gate": "correct", "temperature": 3.0},
    }
    for flag in (f"{node}.helper", f"{node}.helper.temperature"):
        with pytest.raises(RecipeError) as caught:
            overridden(values, [(flag, "2")], groups)
        said = f"--{node}.helper should name one of the recipe's edges: helper/dkd, helper/at-2.5."
        assert caught.value.problems == (f"command line: {said}",)


def test_graph_of_a_recipe_that_is_not_there_is_refused_by_its_flag() -> None:
    line = refusal(write(recipe(TWO, LABEL_ONLY)), "--graph", "nothere.yaml")
    assert line.startswith("--graph: `nothere.yaml` is neither a file nor a bundled recipe.")


@pytest.mark.parametrize("flags", [["--train.lr"], [PEER], ["--graph.nodes", "{"], ["digits"]])
def test_incomplete_command_line_is_refused(flags: list[str]) -> None:
    assert refusal(write(recipe(TWO, LABEL_ONLY)), *flags).startswith("command line: ")


def test_wrong_value_on_the_command_line_is_refused_like_one_in_the_file() -> None:
    path = write(recipe(TWO, LABEL_ONLY))
    said = refusal(path, "--train.opt", "sdg")
    assert said == "train.opt: timm has no optimizer `sdg`. Did you mean `sgd`?"
    said = refusal(path, "--train.opt", "lookahead_adamv")
    assert said.endswith("`lookahead_adamv`. Did you mean `lookahead_adam`?")
    said = refusal(path, PEER, "lineal")
    assert said.startswith("graph.nodes.student.learns_from.helper.gate: `lineal` is not a gate.")
    said = refusal(path, "--data.hflip", "1.5")
    assert said.startswith("data.hflip: ") and "1.5" in said


def test_run_goes_on_with_its_own_recipe_only() -> None:
    Path("runs/mine").mkdir(parents=True)
    save_recipe(check_recipe(recipe(train={"lr": 0.25})), Path("runs/mine/recipe.yaml"))
    command = parse("--resume", "runs/mine")
    assert (command.resume, command.recipe.train.lr) == (Path("runs/mine"), 0.25)
    for others in (
        ["digits"],
        ["--train.lr", "0.5"],
        [f"{STUDENT}.learns_from.label", "linear"],
        ["--output-dir", "elsewhere"],
        ["--overwrite"],
    ):
        assert refusal("--resume", "runs/mine", *others).startswith("resume: "), others


def test_folder_that_is_no_run_cannot_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for path in ("empty", "nowhere"):
        assert main(["--resume", path]) == 2
        said = f"resume: `{path}` is not a run: it has no recipe.yaml.\n"
        assert capsys.readouterr().err == said


def test_run_of_broken_recipe_cannot_be_resumed() -> None:
    shutil.copytree(small_digits(), "broken")
    Path("broken/recipe.yaml").write_text(json.dumps(recipe(train={"lr": 0})))
    assert refusal("--resume", "broken").startswith("train.lr: ")


@pytest.mark.parametrize("flag", ["--graph", "--graph-from"])
def test_graph_can_be_taken_from_another_recipe(flag: str) -> None:
    mine = write(recipe(TWO, LABEL_ONLY, train={"lr": 0.25}))
    found = parse(mine, flag, "cifar100/dml-3", "--graph.target", "twin").recipe
    assert (found.graph.target, found.train.lr) == ("twin", 0.25)
    assert "`nowhere` is neither" in refusal(mine, flag, "nowhere")
