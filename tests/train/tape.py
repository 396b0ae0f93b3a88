"""A CUDA graph's behavior on a CPU: records operators and runs them on the same tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that a device refuses while it records.
REFUSED = ("_local_scalar_dense", "nonzero", "masked_select")

Call = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        output = func(*args, **kwargs)
        given = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        # A view, or what an operator changed in place, lies where it did when it runs again.
        new = [
            each if each.untyped_storage().data_ptr() not in given else None
            for each in tree_leaves(output)
            if isinstance(each, Tensor)
        ]
        self.calls.append((func, args, kwargs, new))
        return output


class Tape:
    """A recorder; see `timm_ktg.train.cuda_graph.Recorder`.

    As in a CUDA graph, Python numbers are recorded as constants, and Python code does not run
    again. The recording itself runs the operators once, so the first replay does nothing.
    """

    replays = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def record(self, update: Callable[[], None]) -> Callable[[], None]:
        try:
            with _Tape() as tape:
                update()
        except RuntimeError as error:  # a second one, which says less, is what CUDA leaves
            ended = RuntimeError("operation failed due to a previous error during capture")
            raise ended from error
        first = True

        def replay() -> None:
            nonlocal first
            type(self).replays += 1
            if first:
                first = False
                return
            with torch.inference_mode():  # which may change what it made before
                for func, args, kwargs, outputs in tape.calls:
                    again = [each for each in tree_leaves(func(*args, **kwargs))]
                    again = [each for each in again if isinstance(each, Tensor)]
                    for old, new in zip(outputs, again, strict=True):
                        if old is not None:
                            old.copy_(new)

        return replay


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]
