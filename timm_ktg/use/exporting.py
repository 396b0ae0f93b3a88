"""Writes a node of a run for use without its Python code: by torch.export, or as ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError, StorageError, first_line
from ..recipe.trained import TrainedRun
from ..records.files import replace_whole, writing

METADATA = "timm_ktg"  # the key of what a file says about its model
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 3)  # sizes that the file is tried with; it is made with another one
_TOLERANCE = 1e-3  # of the largest logit, or of 1 if that is smaller

Run = Callable[[Tensor], Tensor]


def export(run: TrainedRun, node: str | None, form: str, file: Path) -> float:
    """Write a node, and keep the file only if it computes what the node computes.

    The file takes normalized images [B, 3, H, W] of the run's size, for any B, and gives logits
    [B, C]. Its metadata say how to prepare images, and what the classes are.

    Args:
        run: The run.
        node: The node; None: the target.
        form: `torch` or `onnx`.
        file: The file.

    Returns:
        The largest difference of a logit from the node's own.

    Raises:
        RecipeError: There is no such node, it cannot be exported, or packages are missing.
        StorageError: The file computes something else, or cannot be written.
    """
    if form == "onnx":
        _require_onnx()
    name, model = run.name_of(node), run.predictor(node)
    size, facts = _facts(run, name)
    write = _write_onnx if form == "onnx" else _write_torch
    with writing(file), replace_whole(file) as partial:
        try:
            exported = write(model, torch.zeros(2, *size), partial, json.dumps(facts))
        except OSError:
            raise
        except Exception as error:  # torch raises all kinds of errors
            said = f"`{name}` cannot be exported as {form}: {first_line(error)}"
            raise RecipeError([f"{run.directory.path}: {said}"]) from error
        return _checked(model, exported, size, file)


def _facts(run: TrainedRun, name: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the size [3, H, W] of the images, and what the file says about its model."""
    data = run.result.data
    preparation = run.preparation()
    return preparation.input_size, {
        "node": name,
        "mean": data.mean,
        "std": data.std,
        "class_names": data.class_names,
        **asdict(preparation),
    }


def _require_onnx() -> None:
    missing = [name for name in _ONNX if find_spec(name) is None]
    if missing:
        said = f"onnx needs {', '.join(missing)}: pip install 'timm_ktg[onnx]'"
        raise RecipeError([f"--format: {said}"])


def _write_torch(model: nn.Module, images: Tensor, file: Path, facts: str) -> Run:
    program = torch.export.export(model, (images,), dynamic_shapes=_any_batch())
    with file.open("wb") as stream:  # given a path, torch wants it to end in .pt2
        torch.export.save(program, stream, extra_files={METADATA: facts})
    with file.open("rb") as stream:
        run: Run = torch.export.load(stream).module()
    return run


def _write_onnx(model: nn.Module, images: Tensor, file: Path, facts: str) -> Run:
    import onnxruntime

    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=_any_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = facts
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _any_batch() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}


@torch.inference_mode()
def _checked(model: nn.Module, exported: Run, size: tuple[int, ...], file: Path) -> float:
    """Return the largest difference between the logits of a model and of its exported form.

    Raises:
        StorageError: It is too large.
    """
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for batch in _BATCHES:
        images = torch.randn(batch, *size, generator=generator)
        expected, found = model(images), exported(images)
        difference = float((found - expected).abs().max())
        limit = _TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= limit:  # NaN, too
            said = f"should be within {limit:.2g} of the node's own. Found {difference:.2g} away"
            raise StorageError(f"{file}: was not kept: its logits {said}.")
        largest = max(largest, difference)
    return largest
