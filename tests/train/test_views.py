"""Several views of an image in a batch, and the loss that compares them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.loss import JsdCrossEntropy
from torch import Tensor

from tests.recipe_cases import Values, problems_of, recipe, recipe_values
from tests.training_cases import build, metrics_of, summary_of, train_run
from timm_ktg.errors import RecipeError

pytestmark = pytest.mark.slow

DATA: Values = {"pipeline": "timm", "workers": 0, "pad": 4, "img_size": 8, "color_jitter": 0.0}
VIEWS: Values = {**DATA, "aug_splits": 3, "aa": "rand-m9"}


def nodes(**label: Any) -> Values:
    edge = {"loss": "jsd", **label}
    return {
        "student": {"model": "resnet8_cifar", "learns_from": {"label": edge, "helper": "linear"}},
        "helper": {"model": "ktg_tiny", "learns_from": {"label": "through"}},
    }


def values(label: Values | None = None, data: Values | None = None, **train: Any) -> Values:
    images = {**VIEWS, **(data or {})}
    return recipe_values(nodes(**(label or {})), images, {"target": "student"}, **train)


def first_batch(data: Values) -> tuple[Tensor, Tensor]:
    return next(iter(build(recipe(data=data)).images.train))


@pytest.mark.parametrize("streaming", [False, True])
def test_first_views_are_clean_and_the_others_augmented(streaming: bool) -> None:
    plain, labels = first_batch({**DATA, "streaming": streaming})
    images, repeated = first_batch({**VIEWS, "streaming": streaming})
    assert torch.equal(repeated, labels.repeat(3)) and len(images) == 3 * len(plain)
    clean, *others = images.chunk(3)
    assert torch.equal(clean[0], plain[0])  # later images of a stream draw after earlier views
    assert streaming or torch.equal(clean, plain)
    assert not any(map(torch.equal, [clean, *others], [*others, clean]))


@pytest.mark.parametrize("in_workers", [False, True])
def test_clean_views_may_be_left_unerased(
    in_workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm_ktg.recipe.delivery.workers_normalize", lambda *_: in_workers)
    without, _ = first_batch(VIEWS)
    some, _ = first_batch({**VIEWS, "reprob": 1.0, "resplit": True})
    every, _ = first_batch({**VIEWS, "reprob": 1.0})
    erased = [((each - without).abs() > 1e-5).flatten(1).any(1).chunk(3) for each in (some, every)]
    assert not erased[0][0].any() and erased[0][1].any() and erased[1][0].all()


def test_loss_is_timms_over_all_views() -> None:
    training = build(values({"loss_kwargs": {"smoothing": 0.1}}))
    images, labels = next(iter(training.images.train))
    outputs = training.graph(images)
    found = training.graph.losses(outputs, labels, 0.5).edges["label->student"]
    expected = JsdCrossEntropy(3, smoothing=0.1)(outputs["student"].logits, labels)
    torch.testing.assert_close(found, expected)


def test_run_with_views_is_trained_and_costs_them(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", values(epochs=2))
    one = train_run(tmp_path / "one", recipe_values(nodes(loss="bce"), DATA, {"target": "student"}))
    first, second = (summary_of(each)["cost"] for each in (run, one))
    assert first["training_flops"] == 3 * second["training_flops"]
    assert first["inference_flops"] == second["inference_flops"]
    assert len(metrics_of(run)) == 2


def test_views_that_do_not_go_together_are_refused() -> None:
    where = "graph.nodes.student.learns_from.label.loss"
    undivided = "should be 1: a batch with data.aug_splits cannot be divided. Found 2."
    for wrong, line in (
        (values(data={"aug_splits": 2}), f"{where}: jsd needs data.aug_splits 3. Found 2."),
        (
            values({"loss_kwargs": {"splits": 2}}, {"aug_splits": 0}),
            f"{where}: jsd needs data.aug_splits 2. Found 0.",
        ),
        (values(grad_accum_steps=2), f"train.grad_accum_steps: {undivided}"),
    ):
        with pytest.raises(RecipeError) as caught:
            build(wrong)
        assert caught.value.problems == (line,)


def test_settings_that_do_not_go_with_views_are_refused() -> None:
    for data, line in (
        ({"aug_splits": 1}, "data.aug_splits: should be 0, or 2 to 100. Found 1."),
        ({"mixup": 0.2}, "data.mixup: should be left out beside data.aug_splits."),
        ({"no_aug": True}, "data.no_aug: should be left out beside data.aug_splits."),
        (
            {"aug_splits": 0, "resplit": True},
            "data.resplit: has no effect without data.aug_splits.",
        ),
    ):
        assert problems_of(values(data=data)) == (line,)
