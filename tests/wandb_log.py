"""Reads the `.wandb` file that a run in Weights & Biases wrote, record by record."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from timm_ktg.tracking.wandb_run import WandbRun

HEADER, BLOCK = 7, 32 * 1024  # bytes
FULL, LAST = 1, 4  # chunks of LevelDB's log format that end a record


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = HEADER
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # the rest of a block that holds no chunk's head
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        yield kind, data[at + 7 : at + 7 + length]
        at += 7 + length


def records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    whole = b""
    for kind, chunk in _chunks(data):
        whole += chunk
        if kind in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""


def _items(items: Any) -> dict[str, Any]:
    return {
        "/".join(item.nested_key) if item.nested_key else item.key: json.loads(item.value_json)
        for item in items
    }


@dataclass
class Log:
    """A run as recorded in its file."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None


def read_log(path: Path) -> Log:
    log = Log()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.run = record.run
            log.config |= _items(record.run.config.update)
        elif kind == "config":
            log.config |= _items(record.config.update)
        elif kind == "history":
            log.history.append(_items(record.history.item))
        elif kind == "summary":
            log.summary |= _items(record.summary.update)
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            log.step_metrics[name] = record.metric.step_metric
        elif kind == "artifact":
            log.artifacts.append(record.artifact)
        elif kind == "files":
            log.files += [file.path for file in record.files.files]
        elif kind == "exit":
            log.exit_code = record.exit.exit_code
    return log


def logs_in(directory: Path) -> list[Log]:
    """Return the runs below a directory, in the order in which they were begun."""
    wandb.teardown()  # the service writes the rest of its files when it ends
    folders = directory.glob("wandb/*run-*-*")  # not `latest-run`, a link
    folders = sorted(folders, key=lambda folder: folder.name.partition("run-")[2])
    return [read_log(path) for folder in folders for path in folder.glob("*.wandb")]


def epochs_of(log: Log) -> list[dict[str, Any]]:
    """Return the history of a run's epochs, without that of pictures and wandb's own keys."""
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in log.history
        if "lr" in row
    ]


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, and wandb has no state from earlier tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("API_KEY", "MODE", "BASE_URL", "RUN_ID", "SWEEP_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setattr(WandbRun, "away", False)
    wandb.teardown()
    yield
    wandb.teardown()
