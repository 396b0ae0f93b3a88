"""A run in Weights & Biases that never stops or slows down its training."""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import tenacity

from ..errors import one_line
from ..recipe.tracking_config import TrackingConfig
from ..records.metrics import EPOCH

if TYPE_CHECKING:
    import wandb

# Seconds to wait for the server, and for its answer; after that the run is written offline.
CONNECT_TIMEOUT, INIT_TIMEOUT = 3.0, 10.0
FINISH_TIMEOUT = 30.0  # seconds at the end to finish the upload
STEP = EPOCH

_logger = logging.getLogger(__name__)


def wandb_problems(tracking: TrackingConfig) -> list[str]:
    """Return why a run cannot be shown in Weights & Biases, and how to fix it."""
    if not tracking.wandb or os.environ.get("RANK", "0") != "0":  # only the first process shows
        return []
    try:
        import wandb
        from wandb.sdk.wandb_login import _login
    except ImportError:
        return ["tracking.wandb: needs wandb. pip install 'timm_ktg[wandb]'."]
    try:
        mode = mode_of(tracking)
        # The public function would ask at the terminal, and a batch job cannot answer.
        if mode == "online" and not _login(prompt=False, _silent=True)[0]:
            return [
                "tracking.wandb: nobody is logged in to Weights & Biases. Log in (wandb login), or "
                "write the run offline (--tracking.mode offline, or WANDB_MODE=offline)."
            ]
    except (wandb.Error, ValueError) as error:
        return [f"tracking.wandb: {one_line(error)}"]
    return []


def mode_of(tracking: TrackingConfig) -> str:
    """Return the mode of W&B: WANDB_MODE if it is set, else the recipe's, else W&B's own choice.

    The environment comes first, because a resumed run takes no other setting.
    """
    import wandb

    return os.environ.get("WANDB_MODE") or tracking.mode or wandb.setup().settings.mode


def wait_for_server(url: str, seconds: float) -> None:
    """Wait until a server listens at an address; behind a proxy, do not wait.

    Without this, `wandb.init` starts a process and fails only after 22 s (n=1, wandb 0.31.0,
    `init_timeout` 10).

    Args:
        url: The address.
        seconds: The time limit.

    Raises:
        OSError: No server listens.
    """
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    if address.scheme in getproxies() and not proxy_bypass(host):
        return
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        wait=tenacity.wait_fixed(1),
        stop=tenacity.stop_after_delay(seconds),
        reraise=True,
    ):
        with attempt:
            socket.create_connection((host, port), timeout=seconds).close()


@dataclass(frozen=True)
class RunInfo:
    """The description of a run for Weights & Biases.

    Args:
        id: Id of the run; a run with a known id is resumed.
        name: Display name.
        job_type: Kind of run, such as `train`.
        group: Name of the group; None: no group.
        config: The settings, with flat keys.
        sweep: Id of the sweep; None: no sweep.
        console: Whether to upload the terminal's output.
    """

    id: str
    name: str
    job_type: str
    group: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    sweep: str | None = None
    console: bool = True


class WandbRun:
    """A run in Weights & Biases, served by its own thread.

    Logging returns at once, and the thread sends the data as soon as it can. If the server does not
    answer, the run is written offline and a warning says so. Other failures only cause a warning.

    Args:
        tracking: The section of the recipe.
        info: The description of the run.
        directory: The directory in which wandb creates its folder `wandb`.
    """

    # If the server did not answer once, this process does not ask again, or each trial of a search
    # would wait for it. This is a class attribute because wandb's service belongs to the process.
    away = False

    def __init__(self, tracking: TrackingConfig, info: RunInfo, directory: Path) -> None:
        self._tracking, self._info, self._directory = tracking, info, directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wandb")
        self._said: set[str] = set()
        self._run: Future[wandb.Run] = self._thread.submit(self._start)

    def log(self, values: Mapping[str, Any]) -> None:
        """Log the values of an epoch, including `epoch`."""
        values = dict(values)
        self._do(lambda run: run.log(values))

    def configure(self, config: Mapping[str, Any]) -> None:
        """Add settings, with flat keys, that were not yet known when the run began."""
        config = dict(config)

        def update(run: wandb.Run) -> None:
            known: Any = run.config  # untyped
            known.update(config, allow_val_change=True)  # as a resumed trial does

        self._do(update)

    def picture(self, name: str, draw: Callable[[Path], None]) -> None:
        """Log a picture.

        Args:
            name: Name of the picture.
            draw: Writes the picture to a file.
        """
        import wandb

        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name, "picture.png")
        try:
            draw(path)  # not in the thread, because matplotlib is not thread-safe
        except Exception as error:
            self._say(error)
            return

        def log(run: wandb.Run) -> None:
            with folder:
                run.log({name: wandb.Image(str(path))})  # copies the file

        self._do(log)

    def chart(self, name: str, figure: Any) -> None:
        """Log a plotly figure."""
        import wandb

        self._do(lambda run: run.log({name: wandb.Plotly(figure)}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        import wandb

        self._do(lambda run: run.log({name: wandb.Table(columns=list(columns), data=list(rows))}))

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Log files as an artifact; characters that W&B refuses in its name become `-`."""
        import wandb

        valid = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]

        def log(run: wandb.Run) -> None:
            artifact = wandb.Artifact(valid, type=kind)
            for path in files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._do(log)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """End the run, and wait up to `FINISH_TIMEOUT` for the upload.

        Args:
            summary: The result, with flat keys.
            exit_code: 0 unless the run failed.
        """
        self._do(lambda run: run.summary.update(dict(summary)))
        self._do(lambda run: run.finish(exit_code=exit_code))
        self._thread.shutdown()

    def _start(self) -> wandb.Run:
        import wandb

        mode = mode_of(self._tracking)
        if mode != "online":
            return self._init(mode)
        if WandbRun.away:
            return self._init("offline")
        try:
            wait_for_server(wandb.setup().settings.base_url, CONNECT_TIMEOUT)
        except OSError as error:
            return self._offline(error)
        try:
            return self._init(mode)
        except wandb.errors.CommError as error:
            wandb.teardown()  # otherwise wandb's service keeps the id for the failed run
            return self._offline(error)

    def _offline(self, error: Exception) -> wandb.Run:
        WandbRun.away = True
        run = self._init("offline")
        _logger.warning(
            "Weights & Biases cannot be reached (%s). Runs are written offline; "
            "`wandb sync %s/offline-run-*` uploads them.",
            one_line(error),
            Path(run.settings.sync_dir).parent,
        )
        return run

    def _init(self, mode: Any) -> wandb.Run:
        import wandb

        info, tracking = self._info, self._tracking
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            sweep_id=info.sweep,
            console="auto" if info.console else "off",
            silent=not info.console,
        )
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            tags=tracking.tags or None,
            group=tracking.group or info.group,
            mode=mode,
            id=info.id,
            name=info.name,
            job_type=info.job_type,
            config=dict(info.config),
            resume="allow",
            reinit="create_new",
            dir=str(self._directory),
            settings=settings,
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run

    def _do(self, call: Callable[[wandb.Run], None]) -> None:
        self._thread.submit(partial(self._tried, call))

    def _tried(self, call: Callable[[wandb.Run], None]) -> None:
        try:
            call(self._run.result())
        except BaseException as error:  # tracking must not stop the training
            self._say(error)

    def _say(self, error: BaseException) -> None:
        said = one_line(error)
        if said not in self._said:
            self._said.add(said)
            _logger.warning("Weights & Biases: %s", said)


def flat(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Flatten nested values: `{"train": {"lr": 1}}` becomes `{"train.lr": 1}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            below = flat(value, separator)
            result |= {f"{key}{separator}{name}": item for name, item in below.items()}
        else:
            result[str(key)] = value
    return result
