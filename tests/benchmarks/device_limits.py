"""What a device can do at best, and what an update asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Bytes(TorchDispatchMode):
    """Counts what operators read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        if not func.is_view:
            self.total += sum(each.nbytes for each in (*given, *made))
        return output


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], object], amount: float, device: torch.device) -> float:
    """Return how much a second a device does at best, of 5 rounds of 10."""
    best = 0.0
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        for _ in range(10):
            work()
        wait(device)
        best = max(best, 10 * amount / (time.perf_counter() - start))
    return best


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return operations a second of a matrix product, and bytes a second of a copy."""
    size, numbers = (8192, 2**30) if device.type == "cuda" else (1024, 2**24)
    first, second = (torch.randn(2, size, size, device=device, dtype=dtype)).unbind()
    source = torch.zeros(numbers, device=device, dtype=torch.uint8)
    copy = torch.empty_like(source)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # as convolutions do
    product = rate(lambda: first @ second, 2 * size**3, device)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return product, rate(lambda: copy.copy_(source), 2 * numbers, device)
