"""The validation loss of complete cheap trainings, with their logits calibrated.

    python -m tests.benchmarks.calibrated RUNS --data FOLDER

A loss at a temperature, or smoothed labels, leave a network with logits of another scale, and its
cross-entropy says little of how it ranks classes. So the logits of each run of the suite under RUNS
are divided by the one temperature that suits its validation images best (Guo et al., "On
Calibration of Modern Neural Networks", ICML 2017). `recipes/evidence/calibrated.csv` gets a row a
run, for `tests.benchmarks.predictors`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from tests.benchmarks.predictors import CALIBRATED, CHEAP, EVIDENCE
from timm_ktg.data import TransformLoader
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.splits import build_splits
from timm_ktg.recipe.suite_config import load_suite
from timm_ktg.recipe.trained import TrainedRun, open_run
from timm_ktg.suite.table import read_table

COLUMNS = ("dataset", "method", "seed", "recipe", "temperature", "val_loss")


def validation_images(run: TrainedRun, data: DataConfig) -> tuple[Tensor, Tensor]:
    """Return the validation images as the run prepared them, [N, C, H, W], and their labels [N]."""
    splits = build_splits(data)
    loader = TransformLoader(
        splits.val,
        splits.input_key,
        splits.target_key,
        run.transform(),
        batch_size=500,
        device=torch.device("cpu"),
        train=False,
    )
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@torch.inference_mode()
def calibrated(run: TrainedRun, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the temperature of a run's target with the least loss, and that loss."""
    model = run.predictor()
    logits = torch.cat([model(batch) for batch in torch.split(images, 500)]).double()

    def loss(power: float) -> float:
        return float(F.cross_entropy(logits / np.exp(power), labels))

    found = minimize_scalar(loss, bounds=(-4, 4), method="bounded")
    return float(np.exp(found.x)), float(found.fun)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the suite's --output-dir")
    parser.add_argument("--data", required=True, help="where CIFAR-100 is")
    arguments = parser.parse_args()
    suite, rows = load_suite(EVIDENCE / "suite.yml"), read_table(EVIDENCE / "results.csv")
    found: list[tuple[object, ...]] = []
    for dataset in CHEAP:
        digests = {each: suite.digest(dataset, each) for each in suite.methods_of(dataset)}
        there: tuple[Tensor, Tensor] | None = None
        for row in rows:
            if row.dataset != dataset or digests.get(row.method) != row.recipe:
                continue
            folder = arguments.runs / dataset / f"{row.method}-{row.recipe}" / f"seed-{row.seed}"
            run = open_run(folder)
            if there is None:
                data = run.recipe.data.model_copy(update={"dataset": arguments.data})
                there = validation_images(run, data)
            temperature, loss = calibrated(run, *there)
            key = (dataset, row.method, row.seed, row.recipe)
            found.append((*key, f"{temperature:.4f}", f"{loss:.5f}"))
    with CALIBRATED.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(found, key=str))


if __name__ == "__main__":
    main()
