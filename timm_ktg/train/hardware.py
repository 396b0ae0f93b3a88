"""What a machine computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def cpu_capabilities() -> Mapping[str, Any]:
    """Return what torch knows of the CPU; nothing in older versions."""
    return getattr(torch.cpu, "get_capabilities", dict)() or {}


def name_of(device: torch.device) -> str | None:
    """Return the name of a device, such as `NVIDIA H100 80GB HBM3`; None: it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_capabilities().get("cpu_name") if device.type == "cpu" else None


def gains_by_bf16() -> bool:
    """Return whether training on this CPU should be faster in bf16 than in float32.

    On an AMD EPYC with avx512_bf16, those on digits took 0.72 of float32's time (median of 10
    pairs, 0.58 to 0.96, on a busy machine, commit 8d21d2f). An Intel CPU must have AMX: without it,
    steps took 1.10 to 1.76 of float32's time (medians of 3 to 12 pairs of steps of three
    CIFAR-ResNets, ResNet-18 at 64 and 224 pixels, and ViT-Tiny, on a Xeon of Emerald Rapids whose
    virtual machine hides AMX; torch 2.15.0, timm 1.0.31, 1 thread). With it, such steps took 0.35
    to 0.69 (medians of 16 pairs, quartiles within 0.05; channels-last; a Xeon that shows amx_bf16,
    commit 7ef296d), but those of ResNet-8 on digits, batch 32, 0.98 (quartiles 0.92 and 1.01).
    """
    found = cpu_capabilities()
    is_intel = "intel" in str(found.get("cpu_name")).lower()
    return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and not is_intel))
