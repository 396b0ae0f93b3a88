"""How long a report of many trials takes to write, and a browser to show it.

    python -m tests.benchmarks.report [--trials 1500] [--times 7]

The study is made up: real sampler, pruner and objective, nothing trained. Shown are the seconds
until the page has its table and can be used (`interactive`), and until the browser has loaded all
of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.ratios import provenance
from tests.review.report_cases import Browser, make_study
from timm_ktg.review.report import write_report

INTERACTIVE = "return performance.getEntriesByName('interactive')[0].startTime / 1000"
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


def measure(trials: int, times: int) -> dict[str, list[float]]:
    """Return the seconds of each figure."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        study, profile = Path(folder, "study"), Path(folder, "profile")
        make_study(study, trials)
        for _ in range(times):
            start = time.perf_counter()
            page = write_report([study])
            found.setdefault("write", []).append(time.perf_counter() - start)
        found["size, MB"] = [page.stat().st_size / 1e6]
        browser = Browser(profile)
        for _ in range(times):
            browser.open(page)
            found.setdefault("interactive", []).append(browser.run(INTERACTIVE))
            found.setdefault("loaded", []).append(browser.run(LOADED))
        browser.driver.quit()
    return found


def line(name: str, values: Sequence[float]) -> str:
    """Return a line of the median and the range."""
    spread = f" ({min(values):.2f} .. {max(values):.2f}, n={len(values)})" * (len(values) > 1)
    return f"{name}: {statistics.median(values):.2f}{spread}"


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.report")
    parser.add_argument("--trials", type=int, default=1500)
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    found = measure(arguments.trials, arguments.times)
    print(provenance())
    print(f"{arguments.trials:,} trials; seconds, median (range)")
    print("\n".join(line(name, values) for name, values in found.items()))


if __name__ == "__main__":
    main()
