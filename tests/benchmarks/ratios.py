"""Ratios of times within one run: how variants are measured, and the table of what came out."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import timm
import torch

ROOT = Path(__file__).parents[2]


class Seconds(NamedTuple):
    """What a variant took once: CPU time, user and system, and time on the wall."""

    cpu: float
    wall: float


Variants = dict[str, Callable[[], Seconds]]
Results = dict[str, list[Seconds]]


@dataclass(frozen=True)
class Ratio:
    """A line of the table: one variant over another.

    Args:
        over: Name of the variant above the line.
        under: Name of the variant below the line.
        goal: `<=` or `>=`, and the bound; None if there is none.
        percent: Print the ratio in percent.
    """

    over: str
    under: str
    goal: tuple[str, float] | None = None
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Variants that are measured in turn.

    Args:
        build: Returns the variants by name.
        ratios: What is printed of them.
        share: Part of the rounds that the group gets, in 0..1, for one that varies little beside
            its distance from the goal.
    """

    build: Callable[[], Variants]
    ratios: tuple[Ratio, ...]
    share: float = 1.0

    def measure(self, repeats: int) -> Results:
        """Run all variants at least 5 times, back and forth, after a round that does not count."""
        variants = self.build()
        results: Results = {name: [] for name in variants}
        for turn in range(1 + max(5, round(self.share * repeats))):
            for name in list(variants)[:: 1 if turn % 2 else -1]:
                seconds = variants[name]()
                results[name] += [seconds] if turn else []
        return results


def timed(function: Callable[[], object]) -> Seconds:
    """Return what a call takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def provenance() -> str:
    """Return on what, with what and when it was measured."""
    malloc = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("MALLOC_")]
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    cuda = torch.cuda.is_available()
    return "\n".join(
        [
            f"{_cpu()}, {os.cpu_count()} cores, load {load:.1f}; torch threads {threads}; "
            f"{' '.join(malloc) or 'malloc untuned'}",
            *([f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"] if cuda else []),
            f"torch {torch.__version__}, timm {timm.__version__}; commit {_commit()}; "
            f"{datetime.now():%Y-%m-%d %H:%M}",
        ]
    )


def header() -> str:
    """Return what was measured on what, and the table's head."""
    return "\n".join(
        [
            provenance(),
            f"{'group':8}{'ratio of times':21}{'median':>8}  {'quartiles':17}{'CPU':>7}"
            f"{'n':>5}  {'wall s, medians':17}{'goal':9}meets goal",
        ]
    )


def line(group: str, ratio: Ratio, results: Results) -> str:
    """Return a line of the table."""
    over, under = results[ratio.over], results[ratio.under]
    scale, unit = (100, "%") if ratio.percent else (1, "")
    cpu = [scale * a.cpu / b.cpu for a, b in zip(over, under, strict=True)]
    wall = [scale * a.wall / b.wall for a, b in zip(over, under, strict=True)]
    low, median, high = statistics.quantiles(wall)
    goal, verdict = "-", "-"
    if ratio.goal:
        sign, bound = ratio.goal[0], scale * ratio.goal[1]
        goal = f"{sign} {bound:g}{unit}"
        verdict = "yes" if (median <= bound if sign == "<=" else median >= bound) else "no"
    times = " / ".join(f"{statistics.median(s.wall for s in each):.4f}" for each in (over, under))
    return (
        f"{group:8}{f'{ratio.over} / {ratio.under}':21}{f'{median:.3f}{unit}':>8}  "
        f"{f'{low:.3f} .. {high:.3f}':17}{statistics.median(cpu):7.3f}{len(cpu):5}  {times:17}"
        f"{goal:9}{verdict}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    # Without optional locks, not to get in the way of somebody who commits.
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    return commit + ("-dirty" if _git("--no-optional-locks", "status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git, with a copy of the files
        return ""
    return done.stdout.strip()
