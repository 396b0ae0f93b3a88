"""A node as a folder that timm reads, in the form that it pushes to the Hugging Face hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

# These describe the weights that the node started from, not the weights in the folder.
_NOT_OURS = {"tag": None, "license": None}


def export_folder(
    model: nn.Module, weights: Path, data_config: Mapping[str, Any], class_names: Sequence[str]
) -> None:
    """Write the folder that `timm.create_model("local-dir:...", pretrained=True)` reads.

    It lies beside the file of weights, under the same name without the suffix.

    Args:
        model: The node's model, built by timm.
        weights: The file that `export_node` wrote.
        data_config: `input_size`, `interpolation`, `crop_pct`, `crop_mode`, `mean` and `std`, which
            `timm.data.resolve_model_data_config` gives back.
        class_names: [C] names.

    Raises:
        ValueError: timm could not build the model again.
    """
    if not hasattr(model, "pretrained_cfg"):
        raise ValueError("the model should have a `pretrained_cfg`, as timm's have. Found none.")
    folder = weights.with_suffix("")
    folder.mkdir(exist_ok=True)
    save_config_for_hf(
        model,
        str(folder / "config.json"),
        model_config={"label_names": list(class_names), "pretrained_cfg": _NOT_OURS},
        data_config=dict(data_config),
    )
    _give_second_name(weights, folder / "model.safetensors")


def _give_second_name(file: Path, name: Path) -> None:
    """Give a file a second name, so that its content is stored once."""
    name.unlink(missing_ok=True)
    try:
        os.link(file, name)  # not a symbolic link, so that folder and file can be moved apart
    except OSError:  # some file systems have no hard links
        shutil.copyfile(file, name)
