"""What an outage of Weights & Biases costs a training.

    python -m tests.benchmarks.tracking [--repeats N]

Each is `python -m timm_ktg.train digits`, the whole program in a process of its own, in turn, back
and forth, after a round that does not count: `outage`, online, where the server's address is a
loopback port that nobody listens to; `offline`.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil

from tests.benchmarks.ratios import ROOT, Group, Ratio, Seconds, Variants, header, line

FLAGS = {
    "outage": ["--tracking.wandb", "true", "--tracking.mode", "online"],
    "offline": ["--tracking.wandb", "true", "--tracking.mode", "offline"],
}
RATIOS = (Ratio("outage", "offline", ("<=", 1.1)),)


def variants() -> Variants:
    """Return the programs."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    return {name: partial(train, flags, url) for name, flags in FLAGS.items()}


def train(flags: list[str], url: str) -> Seconds:
    """Train in a process of its own, and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = psutil.Process().cpu_times(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "timm_ktg.train", "digits", *flags]
            + ["--output-dir", str(Path(folder, "run"))],
            cwd=ROOT,
            env={**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        wall, after = time.perf_counter() - start, psutil.Process().cpu_times()
    cpu = after.children_user + after.children_system
    return Seconds(cpu - before.children_user - before.children_system, wall)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tracking")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, at least 5")
    arguments = parser.parse_args()
    print(header(), flush=True)
    results = Group(variants, RATIOS).measure(arguments.repeats)
    print("\n".join(line("train", ratio, results) for ratio in RATIOS))


if __name__ == "__main__":
    main()
