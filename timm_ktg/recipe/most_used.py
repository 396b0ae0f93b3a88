"""What the short help of a command line shows."""

from __future__ import annotations

# Fields that the short help shows, by the first key of their section's path.
MOST_USED = {
    "graph": {
        *("target", "reduction", "model", "pretrained", "checkpoint_path"),
        *("gate", "loss", "temperature", "weight"),
    },
    "search": {
        *("nodes", "target_model", "models", "gates", "losses", "trials", "storage"),
        *("objective", "top_k", "final_seeds"),
    },
    "data": {
        *("dataset", "input_key", "target_key", "holdout", "images_per_class"),
        *("pipeline", "img_size"),
    },
    "train": {
        *("epochs", "batch_size", "lr", "opt", "sched", "weight_decay", "smoothing"),
        *("seed", "mixed_precision", "model_ema"),
    },
    "tracking": {"wandb", "project"},
}
