"""The pages of evidence say what their tables say, and every run there has its log."""

import re
import shutil
from pathlib import Path

import pytest

from tests.methods import EVIDENCE
from timm_ktg.recipe.suite_config import load_suite
from timm_ktg.suite.page import write_page
from timm_ktg.suite.table import read_table

PAGES = sorted(EVIDENCE.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_what_its_command_writes(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ((command, suite),) = re.findall(
        r"`(python -m timm_ktg\.suite (\S+) --table \S+ --page)`", text
    )
    table = Path(shutil.copy(page.with_suffix(".csv"), tmp_path))
    again = write_page(load_suite(EVIDENCE / suite), table, suite)
    old = f"{page.name} is old; write it anew, in recipes/evidence: {command}"
    assert text == again.read_text(encoding="utf-8"), old
    pictures = {each.name for each in tmp_path.glob("*.svg")}
    assert pictures and pictures == {each.name for each in EVIDENCE.glob(f"{page.stem}-*.svg")}


def test_every_row_has_a_log_and_every_log_a_row() -> None:
    rows = [row for page in PAGES for row in read_table(page.with_suffix(".csv"))]
    logs = [f"{row.dataset}/{row.method}-{row.recipe}-seed-{row.seed}.jsonl.gz" for row in rows]
    kept = [each.relative_to(EVIDENCE / "logs").as_posix() for each in EVIDENCE.rglob("*.gz")]
    assert len(set(logs)) > 600 and set(logs) == set(kept)
