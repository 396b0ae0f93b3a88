"""Where images come from: a folder gives its own files, whatever was read before."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timm_ktg.data.sources import load_source

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
---
"""


@pytest.mark.parametrize("card", [CARD, None])
def test_folder_gives_its_own_files_not_those_of_a_namesake(
    workplace: Path, card: str | None
) -> None:
    def rows(parent: str, count: int) -> int:
        folder = Path(parent, "photos")
        folder.mkdir(parents=True, exist_ok=True)
        if card is not None:
            (folder / "README.md").write_text(card)
        pq.write_table(pa.table({"label": list(range(count))}), folder / "train.parquet")
        return len(load_source(str(folder))["train"])

    assert rows("first", 9) == 9
    assert rows("second", 12) == 12
    assert rows("first", 7) == 7  # other files in the same folder
