"""A run in Weights & Biases that never stops or slows what it shows."""

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

if TYPE_CHECKING:
    import wandb

# Seconds in which the server should be there, and then answer; else the run is written offline.
CONNECT_TIMEOUT, INIT_TIMEOUT = 3.0, 10.0
FINISH_TIMEOUT = 30.0  # seconds for what is not yet uploaded at the end
STEP = "epoch"

_logger = logging.getLogger(__name__)


def wandb_problems(tracking: TrackingConfig) -> list[str]:
    """Return why a run cannot be shown in Weights & Biases, if so, and what to do."""
    if not tracking.wandb or os.environ.get("RANK", "0") != "0":  # the first process alone shows
        return []
    try:
        import wandb
        from wandb.sdk.wandb_login import _login
    except ImportError:
        return ["tracking.wandb: needs wandb. pip install 'timm_ktg[wandb]'."]
    try:
        mode = mode_of(tracking)
        # The public function would ask at the terminal, where a batch job has nobody to answer.
        if mode == "online" and not _login(prompt=False, _silent=True)[0]:
            return [
                "tracking.wandb: nobody is logged in to Weights & Biases. Log in (wandb login), or "
                "write the run offline (--tracking.mode offline, or WANDB_MODE=offline)."
            ]
    except (wandb.Error, ValueError) as error:
        return [f"tracking.wandb: {one_line(error)}"]
    return []


def mode_of(tracking: TrackingConfig) -> str:
    """Return the mode of W&B: WANDB_MODE where it is set, the recipe's, or W&B's own choice.

    The environment comes first, for a run that is resumed has no other way to say it.
    """
    import wandb

    return os.environ.get("WANDB_MODE") or tracking.mode or wandb.setup().settings.mode


def wait_for_server(url: str, seconds: float) -> None:
    """Wait until something listens at an address, or there is a proxy in front of it.

    Without this, `wandb.init` starts a process and says after 22 s that nothing does (n=1, wandb
    0.31.0, `init_timeout` 10).

    Args:
        url: The address.
        seconds: How long to wait.

    Raises:
        OSError: Nothing does.
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
class Card:
    """What a run is.

    Args:
        id: Its id; a run with the same one is the same run, which goes on.
        name: Name that is shown.
        job_type: Its kind, such as `train`.
        group: Name of the group it belongs to, if it does.
        config: What was chosen, in flat keys.
        sweep: Id of the sweep it belongs to, if it does.
        console: Whether to keep what the terminal shows.
    """

    id: str
    name: str
    job_type: str
    group: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    sweep: str | None = None
    console: bool = True


class WandbRun:
    """A run in Weights & Biases, spoken to by a thread of its own.

    What is logged is handed over at once and sent when it can be. A server that does not answer
    makes the run an offline one, and a line says so; whatever else goes wrong costs a line too.

    Args:
        tracking: Project, entity, tags, group, mode.
        card: What the run is.
        directory: Where wandb keeps its files, below `wandb`.
    """

    # Once the server has not answered, this process does not ask again, for each trial of a search
    # would wait for it. It belongs to the class as wandb's service belongs to the process.
    away = False

    def __init__(self, tracking: TrackingConfig, card: Card, directory: Path) -> None:
        self._tracking, self._card, self._directory = tracking, card, directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wandb")
        self._said: set[str] = set()
        self._run: Future[wandb.Run] = self._thread.submit(self._start)

    def log(self, values: Mapping[str, Any]) -> None:
        """Log a step's values, `epoch` among them."""
        values = dict(values)
        self._do(lambda run: run.log(values))

    def picture(self, name: str, draw: Callable[[Path], None]) -> None:
        """Log a picture.

        Args:
            name: Its name.
            draw: Writes it into a file.
        """
        import wandb

        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name, "picture.png")
        try:
            draw(path)  # here and not in the thread, for matplotlib draws one thing at a time
        except Exception as error:
            self._say(error)
            return

        def log(run: wandb.Run) -> None:
            with folder:
                run.log({name: wandb.Image(str(path))})  # which copies it

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
        """Log files as an artifact; characters that W&B does not take become `-` in its name."""
        import wandb

        valid = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128]

        def log(run: wandb.Run) -> None:
            artifact = wandb.Artifact(valid, type=kind)
            for path in files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._do(log)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """End the run, and wait until it is sent, as far as `FINISH_TIMEOUT` goes.

        Args:
            summary: What it came to, in flat keys.
            exit_code: 0 unless it failed.
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
            wandb.teardown()  # for wandb's service would keep the id for the run that failed
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

        card, tracking = self._card, self._tracking
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            sweep_id=card.sweep,
            console="auto" if card.console else "off",
            silent=not card.console,
        )
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            tags=tracking.tags or None,
            group=tracking.group or card.group,
            mode=mode,
            id=card.id,
            name=card.name,
            job_type=card.job_type,
            config=dict(card.config),
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
        except BaseException as error:  # whatever it is, the training is worth more
            self._say(error)

    def _say(self, error: BaseException) -> None:
        said = one_line(error)
        if said not in self._said:
            self._said.add(said)
            _logger.warning("Weights & Biases: %s", said)


def flat(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return nested values as one level, keys joined: `{"train": {"lr": 1}}` is `train.lr: 1`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            below = flat(value, separator)
            result |= {f"{key}{separator}{name}": item for name, item in below.items()}
        else:
            result[str(key)] = value
    return result
