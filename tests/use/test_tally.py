"""The figures of a validation, against references in numpy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss

from tests.nets import array, log_softmax
from timm_ktg.use.tally import Measured, Tally

CLASSES = 7


def drawn(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES - 1, (count,), generator=generator)  # the last has no images
    logits = 2 * torch.randn(count, CLASSES, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def measured(batch: int = 64) -> Measured:
    logits, labels = drawn()
    tally = Tally(CLASSES)
    for some, their in zip(logits.split(batch), labels.split(batch), strict=True):
        assert torch.equal(tally.update(some, their), some.argmax(-1))
    return tally.measured()


def test_figures_are_those_of_scikit_learn() -> None:
    logits, labels = drawn()
    found, truth = measured(), labels.numpy()
    probabilities = np.exp(log_softmax(array(logits)))
    ranks = (-probabilities).argsort(1)
    assert found.top1 == pytest.approx(100 * np.mean(ranks[:, 0] == truth))
    assert found.top5 == pytest.approx(100 * np.mean((ranks[:, :5] == truth[:, None]).any(1)))
    assert found.loss == pytest.approx(log_loss(truth, probabilities, labels=range(CLASSES)))
    expected = confusion_matrix(truth, ranks[:, 0], labels=range(CLASSES))
    assert found.confusion.numpy().tolist() == expected.tolist()


def test_calibration_error_is_that_of_fifteen_bins() -> None:
    logits, labels = drawn()
    probabilities = np.exp(log_softmax(array(logits)))
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    error = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert measured().ece == pytest.approx(100 * error) and error > 0.01


def test_certain_and_right_predictions_are_calibrated() -> None:
    tally = Tally(3)
    tally.update(1000 * torch.eye(3), torch.arange(3))
    assert (tally.measured().ece, tally.measured().top1) == (0, 100)


def test_figures_do_not_depend_on_the_batches() -> None:
    first, second = measured(64), measured(1)
    assert first.top1 == second.top1 and torch.equal(first.confusion, second.confusion)
    assert first.ece == pytest.approx(second.ece) and first.loss == pytest.approx(second.loss)


def test_class_without_images_has_no_accuracy() -> None:
    *others, last = measured().per_class
    assert last is None and all(each is not None and 0 < each < 100 for each in others)
