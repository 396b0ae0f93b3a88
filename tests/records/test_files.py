"""Files that are written whole or not at all."""

import re
from pathlib import Path

import pytest

from timm_ktg.errors import StorageError
from timm_ktg.records.files import write_whole


def test_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(StorageError, match=re.escape(f"{path}: cannot be written: ")):
        write_whole(path, "text")
    assert list(tmp_path.iterdir()) == [path]
