"""A loss and a gate with parameters in a run: trained, clipped, resumed, and not exported."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.edge_modules import learned, projected
from tests.recipe_cases import MUTUAL, Values, recipe_values
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    on_cpu,
    run_main,
    same_state,
    state_of,
    stop_run,
    train_run,
)
from timm_ktg.graph.edge import EdgeModule
from timm_ktg.train.loop import start_epoch, train_epoch
from timm_ktg.train.training import Training

NODES: Values = {
    "a": {
        "model": "ktg_tiny",
        "learns_from": {
            "label": "through",
            "b": [
                {"gate": "correct"},
                {"loss": "projected", "loss_kwargs": {"width": 2}, "gate": "learned"},
            ],
        },
    },
    "b": MUTUAL["b"],
}
EDGE = "b->a/projected"


def edge_of(training: Training) -> EdgeModule:
    edge = training.graph.edge_modules[EDGE]
    assert isinstance(edge, EdgeModule)
    return edge


def test_loss_and_gate_of_a_recipe_are_built_and_trained() -> None:
    training = build(recipe_values(NODES))
    edge = edge_of(training)
    assert isinstance(edge.loss, projected) and isinstance(edge.gate, learned)
    assert edge.loss.down.out_features == 2
    before = state_of(edge)
    metrics = train_epoch(training, start_epoch(training))
    after = state_of(edge)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert {"train/loss/b->a/kl_div", f"train/loss/{EDGE}", f"train/weight/{EDGE}"} <= set(metrics)


def test_edge_starts_from_the_runs_seed_whatever_other_edges_there_are() -> None:
    alone = {**NODES, "a": {**NODES["a"], "learns_from": {"label": "through", **_projected_only()}}}
    states = [state_of(edge_of(build(recipe_values(nodes)))) for nodes in (NODES, NODES, alone)]
    assert same_state(states[0], states[1]) and same_state(states[0], states[2])
    other = state_of(edge_of(build(recipe_values(NODES, seed=1))))
    assert not same_state(states[0], other)


def _projected_only() -> Values:
    return {"b/projected": NODES["a"]["learns_from"]["b"][1]}


def test_parameters_of_an_edge_are_clipped_with_those_of_its_destination() -> None:
    limit = 1e-3
    training = build(
        recipe_values(
            NODES, clip_grad=limit, lr=1.0, opt="momentum", momentum=0.0, weight_decay=0.0
        )
    )
    owners = training.graph.parameter_owners()
    before = {name: [each.detach().clone() for each in owned] for name, owned in owners.items()}
    train_epoch(training, [next(iter(start_epoch(training)))])
    for name, owned in owners.items():
        steps = [new.detach() - old for new, old in zip(owned, before[name], strict=True)]
        assert torch.cat([step.flatten() for step in steps]).norm() <= 1.01 * limit
    edge = [new - old for new, old in zip(owners["a"][-8:], before["a"][-8:], strict=True)]
    assert any(step.norm() > 0 for step in edge)


def test_every_edge_has_an_optimizer_group_of_its_destination() -> None:
    values: dict[str, Any] = {"filter_bias_and_bn": True, "weight_decay": 0.01}
    training = build(recipe_values(NODES, **values))
    groups = training.optimizer.param_groups
    held = {id(each): group for group in groups for each in group["params"]}
    for name, parameter in edge_of(training).named_parameters():
        group = held[id(parameter)]
        assert group["node"] == "a"
        assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0), name


def test_run_with_such_an_edge_goes_on_bit_for_bit_and_exports_models_alone(tmp_path: Path) -> None:
    whole = train_run(tmp_path / "whole", recipe_values(NODES, epochs=3))
    stopped = stop_run(tmp_path / "stopped", recipe_values(NODES, epochs=3), epoch=2)
    assert len(metrics_of(stopped)) == 1
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)
    names = load_file(whole / "nodes" / "a.safetensors").keys()
    assert names == build(recipe_values(NODES)).graph.model("a").state_dict().keys()


@on_cpu
def test_edge_is_built_on_the_device_of_its_ends() -> None:
    graph = build(recipe_values(NODES)).graph
    outputs = {name: node.detach() for name, node in graph(torch.zeros(2, 3, 8, 8)).items()}
    away = {
        name: output._replace(logits=output.logits.to("meta")) for name, output in outputs.items()
    }
    edge = next(each for each in graph.edges if each.name == EDGE)
    module = EdgeModule(edge)
    module.build(away["b"], away["a"])
    assert {each.device.type for each in module.parameters()} == {"meta"}


def test_edges_of_one_shape_start_apart() -> None:
    again = {"label": "through", "b": NODES["a"]["learns_from"]["b"][1]}
    nodes = {**NODES, "a": {**NODES["a"], "learns_from": {**again, "b/more": again["b"]}}}
    modules = build(recipe_values(nodes)).graph.edge_modules.values()
    edges = [each for each in modules if list(each.parameters())]
    assert len(edges) == 2 and not same_state(*map(state_of, edges))
