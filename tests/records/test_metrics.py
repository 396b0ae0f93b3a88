"""The names of metrics: written and read in one place."""

from timm_ktg.records.metrics import (
    evaluated_loss_name,
    loss_name,
    mean_weights,
    node_losses,
    passed_name,
    shares_passed,
    top1_by_node,
    top1_name,
    top_name,
    val_losses,
    watched_split,
    weight_name,
)

EDGES = ("label->a", "b->a", "b->a/attention")
METRICS = {
    "epoch": 1.0,
    **{loss_name(owner): 2.0 for owner in ("a", "b", *EDGES)},
    **{weight_name(edge): 0.5 for edge in EDGES},
    **{passed_name(edge): 0.25 * number for number, edge in enumerate(EDGES)},
    **{top_name(top, "train", node): 10.0 * top for top in (1, 5) for node in ("a", "b")},
}


def test_names_are_those_on_disk() -> None:
    assert loss_name("a") == "train/loss/a"
    assert loss_name("b->a/attention") == "train/loss/b->a/attention"
    assert weight_name("b->a") == "train/weight/b->a"
    assert passed_name("b->a") == "train/passed/b->a"
    assert top1_name("val", "a") == "val/top1/a" == top_name(1, "val", "a")
    assert top_name(5, "test", "a") == "test/top5/a"
    assert evaluated_loss_name("val", "a") == "val/loss/a"


def test_measures_are_found_by_node_and_edge() -> None:
    assert node_losses(METRICS) == {"a": 2.0, "b": 2.0}
    assert mean_weights(METRICS) == dict.fromkeys(EDGES, 0.5)
    old = {name: value for name, value in METRICS.items() if "weight" not in name}
    assert mean_weights(old) == shares_passed(old)
    assert shares_passed(METRICS) == {"label->a": 0.0, "b->a": 0.25, "b->a/attention": 0.5}
    assert top1_by_node(METRICS, "train") == {"a": 10.0, "b": 10.0}
    assert top1_by_node(METRICS, "val") == val_losses(METRICS) == {}
    assert val_losses({**METRICS, evaluated_loss_name("val", "a"): 3.0}) == {"a": 3.0}


def test_run_is_watched_by_validation_images_where_there_are_any() -> None:
    assert watched_split(METRICS) == "train"
    assert watched_split({**METRICS, top1_name("val", "a"): 9.0}) == "val"
