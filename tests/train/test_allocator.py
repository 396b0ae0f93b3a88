"""Freed memory is used again without asking the kernel for it."""

import platform
import resource

import pytest
import torch

from timm_ktg.train.allocator import keep_freed_memory


def faults() -> int:
    """Return how many pages this process gets from the kernel when it uses 128 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(32)]
    assert len(tensors) == 32
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set")
def test_memory_that_was_freed_is_not_fetched_again() -> None:
    keep_freed_memory()
    # 128 MiB are 32,768 pages. Several times, because a heap in pieces grows a little at first.
    assert min(faults() for _ in range(8)) < 1000
