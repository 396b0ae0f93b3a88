"""Weights that workers share by a bucket, over HTTP, from a server of moto's on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values

pytestmark = pytest.mark.slow

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anybody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="weights")
    yield "weights"
    running.stop()


def test_frozen_nodes_weights_are_shared_by_a_bucket(tmp_path: Path, bucket: str) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values(frozen=True, top_k=0))
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--search.artifacts", f"s3://{bucket}", "--search.storage", str(tmp_path / "journal")]
    assert run_search(recipe, *flags, "--output-dir", first) == 0
    assert run_search(recipe, *flags, "--output-dir", second, "--search.trials", "12") == 0
    stored = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert len(stored) >= 2
    names = {path.name for path in first.glob("weights/*.safetensors")}
    fetched = {path.name for path in second.glob("weights/*.safetensors")}
    assert names & fetched  # the very same weights, not trained again
    for name in names & fetched:
        assert (first / "weights" / name).read_bytes() == (second / "weights" / name).read_bytes()
    assert result_in(second)["rows"]


def test_bucket_that_is_not_there_is_said_before_training(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "s.yaml", search_values(frozen=True))
    out = tmp_path / "out"
    assert run_search(recipe, "--search.artifacts", "s3://nowhere", "--output-dir", out) == 2
    said = capsys.readouterr()
    assert "bucket `nowhere`" in said.err and len(said.err.splitlines()) == 1
    assert "Training" not in said.out
