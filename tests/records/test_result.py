"""The result of a run: the file's keys in their order, and what is said of a bad one."""

import json
from statistics import mean, stdev
from typing import Any

import pytest

from tests.records.result_cases import a_result
from timm_ktg.records.result import Cost, RunResult, SeedsResult

KEYS = [
    *("target", "split", "nodes", "seed", "epochs", "data", "processes", "device", "python"),
    *("packages", "training_seconds", "wall_seconds", "images", "cost", "best", "device_name"),
]


def test_result_comes_back_from_its_json_as_it_was() -> None:
    result = a_result({"student": 71.5, "peer": 70})
    values = json.loads(json.dumps(result.as_json()))
    assert values == result.as_json()
    assert RunResult.from_json(values) == result
    assert result.target_accuracy.top1 == 71.5


def test_result_of_an_earlier_version_has_no_number_of_images() -> None:
    values = a_result({"student": 71.5}, images=360).as_json()
    assert RunResult.from_json(values).images == values.pop("images") == 360
    assert RunResult.from_json(values).images is None


def test_result_of_an_earlier_version_has_no_cost() -> None:
    values = a_result({"student": 71.5}, cost=Cost(300, 100, 20)).as_json()
    assert RunResult.from_json(values).cost == Cost(300, 100, 20)
    assert values.pop("cost") == {"training_flops": 300, "inference_flops": 100, "parameters": 20}
    assert RunResult.from_json(values).cost is None


def test_json_has_the_keys_of_summary_json_in_their_order() -> None:
    values = a_result({"student": 71.5, "peer": 70.0}).as_json()
    assert list(values) == KEYS
    assert values["nodes"] == {
        "student": {"top1": 71.5, "top5": 99.0},
        "peer": {"top1": 70.0, "top5": 99.0},
    }
    assert list(values["data"].items()) == [
        ("fingerprint", "0123abcd"),
        ("mean", [0.5, 0.25, 0.5]),
        ("std", [0.1, 0.2, 0.3]),
        ("class_names", []),
        ("preparation", None),
        ("split_seed", None),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": None}, "target: should be a valid string. Found None"),
        ({"target": "helper"}, "target: should be one of the nodes student. Found 'helper'"),
        ({"epochs": "many"}, "epochs: should be a valid integer, .*Found 'many'"),
        ({"nodes": {"student": {"top1": 1.0}}}, r"nodes\.student\.top5: should be given"),
        ({"nodes": 3}, "nodes: should be a valid dictionary. Found 3"),
    ],
)
def test_bad_content_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        RunResult.from_json({**a_result({"student": 1.0}).as_json(), **change})


def test_all_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="target: should be given; split: should be given; nodes"):
        RunResult.from_json({})
    with pytest.raises(ValueError, match=r"^the whole: should be .* Found \[\]$"):
        RunResult.from_json([])


def test_seeds_are_combined_node_by_node() -> None:
    runs = [a_result({"student": top1, "peer": 50.0}, epochs=3) for top1 in (70.0, 72.0, 71.0)]
    values = SeedsResult.of([3, 5, 7], runs).as_json()
    assert list(values) == ["target", "split", "epochs", "seeds", "nodes"]
    assert (values["target"], values["epochs"], values["seeds"]) == ("student", 3, [3, 5, 7])
    found = [70.0, 72.0, 71.0]
    assert values["nodes"]["student"]["top1"] == {
        "mean": mean(found),
        "std": stdev(found),
        "n": 3,
        "values": found,
    }
    assert values["nodes"]["peer"]["top5"]["std"] == 0
