"""Networks that compute side by side on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from .losses import NodeOutput


class Streams:
    """A stream for each network.

    A network of small images fills few of a device's multiprocessors, so several compute in little
    more than the time of the longest. This pays only in updates that are recorded, because
    launching their operators one by one takes longer than computing them. Autograd does an
    operator's backward on the stream of its forward.

    In bfloat16 and batches of 64 images, recorded updates took 0.66, 0.65 and 0.46 of the time on
    one stream (2, 4 and 7 nodes, the paper's; 5.67, 18.03 and 23.60 ms, 7 rounds of 20, quartiles
    within 0.3 %; one H100, torch 2.11.0, timm 1.0.31, commit 0680cca).

    Args:
        names: The networks.
        device: A CUDA device.
    """

    def __init__(self, names: Iterable[str], device: torch.device) -> None:
        self._streams = {
            name: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for name in names
        }

    def run(
        self, networks: Mapping[str, Callable[[Tensor], NodeOutput]], images: Tensor
    ) -> dict[str, NodeOutput]:
        """Return the networks' outputs, each computed on its stream.

        Args:
            networks: By name.
            images: [B, 3, H, W].
        """
        current, outputs = torch.cuda.current_stream(images.device), {}
        for name, network in networks.items():
            stream = self._streams[name]
            stream.wait_stream(current)
            # Memory that one stream gives back must not be reused while another one reads it.
            images.record_stream(stream)
            with torch.cuda.stream(stream):
                outputs[name] = network(images)
        for name, output in outputs.items():
            current.wait_stream(self._streams[name])
            tensors = (output.logits, *output.features.values(), *output.heads.values())
            for tensor in tensors:
                tensor.record_stream(current)
        return outputs
