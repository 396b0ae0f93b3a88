"""Where a study is kept: a journal for the workers of one host, a database for those of several."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import tenacity
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock
from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
)

from ..errors import RecipeError, first_line, located
from ..recipe.search_config import SearchConfig, storage_problem
from .liveness import retry

JOURNAL = "study.journal"
PATIENCE = 600.0  # seconds that a database may be away
CONNECT_TIMEOUT = 10  # seconds; without it, a host that drops what it is sent takes minutes to fail

# What Optuna's cache calls on an RDBStorage, beside the methods that every storage has.
_CALLED = (
    *("record_heartbeat", "get_trial_id_from_study_id_trial_number", "_get_stale_trial_ids"),
    *("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id"),
)

_logger = logging.getLogger(__name__)


def open_storage(search: SearchConfig, directory: Path) -> BaseStorage:
    """Return the storage that a recipe asks for.

    Args:
        search: The section of the recipe.
        directory: The search's, for a journal.

    Raises:
        RecipeError: There is no such storage.
    """
    where = search.storage
    if where is None or "://" not in where:
        with located("search.storage"):
            return _journal(directory / JOURNAL if where is None else Path(where))
    return _database(where, search.heartbeat_interval, search.grace_period)


def open_to_read(where: str | None, directory: Path) -> BaseStorage:
    """Return the storage of studies that exist, only to look at them.

    Nothing is made, and no worker's trial is taken for dead.

    Args:
        where: As a recipe's `search.storage` says.
        directory: The search's, for a journal.

    Raises:
        RecipeError: There is none.
    """
    problem = storage_problem(where)
    if problem:
        raise RecipeError([f"study: {problem}"])
    if where is None or "://" not in where:
        path = directory / JOURNAL if where is None else Path(where)
        if not path.is_file():  # Optuna would make it
            raise RecipeError([f"study: should be a journal at {path}. Found none."])
        with located(f"study: {path} cannot be read"):
            return _journal(path)
    with _opening():
        engine = {"poolclass": NullPool, "connect_args": {"connect_timeout": CONNECT_TIMEOUT}}
        url = _url(where)
        if not inspect(create_engine(url.format(), **engine)).has_table("studies"):
            raise RecipeError(["study: the database should hold one. Found none."])
        return RDBStorage(url, engine_kwargs=engine, skip_table_creation=True)


def open_artifacts(search: SearchConfig, directory: Path) -> ArtifactStore:
    """Return the store in which workers share weights.

    Args:
        search: The section of the recipe.
        directory: The search's, for a folder.

    Raises:
        RecipeError: The store cannot be opened.
    """
    where = search.artifacts
    if where is not None and where.startswith("s3://"):
        return _bucket(where.removeprefix("s3://"))
    folder = directory / "artifacts" if where is None else Path(where)
    with located("search.artifacts"):
        folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


def _bucket(name: str) -> ArtifactStore:
    """Return the store in a bucket, once it is clear that the bucket can be used."""
    with located("search.artifacts"):  # boto3 may be missing
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client("s3")
        try:
            client.head_bucket(Bucket=name)
        except (BotoCoreError, ClientError) as error:
            raise ValueError(f"the bucket `{name}` cannot be used. {first_line(error)}") from error
        return Boto3ArtifactStore(name, client=client)


class _KernelLock(BaseJournalFileLock):
    """A lock that the kernel gives back when its holder is killed.

    Optuna's `JournalFileOpenLock` is a file, which a killed holder leaves behind. The others then
    wait for 30 s and take it by force, several of them at once.

    Args:
        path: The journal.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        import fcntl

        self._file = open(self._path, "a", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give the lock back."""
        assert self._file is not None
        self._file.close()


def _journal(path: Path) -> JournalStorage:
    """Return the journal of one host's workers, with Optuna's lock where the kernel has none."""
    lock = JournalFileOpenLock if sys.platform == "win32" else _KernelLock
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock(str(path))))


def _url(url: str) -> str:
    """Return the url as Optuna wants it.

    Raises:
        RecipeError: It is not of a database for several workers.
    """
    if url.startswith("sqlite"):
        raise RecipeError(
            [
                "search.storage: should be a journal (null, or a path) on one host, or a "
                "postgresql://... for several. Found SQLite, which breaks when workers start "
                "together."
            ]
        )
    url = url.replace("postgresql://", "postgresql+psycopg://", 1)  # not psycopg2, the default
    return url.replace("{", "{{").replace("}", "}}")  # because Optuna takes it for a template


@contextmanager
def _opening() -> Iterator[None]:
    """Turn what a database raises into a RecipeError of one line."""
    try:
        yield
    except RecipeError:
        raise
    except (ImportError, SQLAlchemyError, StorageInternalError, RuntimeError, ValueError) as error:
        # RuntimeError: another version of Optuna made the tables; ValueError: a port in letters.
        said = first_line(error)
        if isinstance(error, ImportError):
            said += " A database needs: pip install 'timm_ktg[postgres]'."
        raise RecipeError([f"search.storage: {said}"]) from error


def _database(url: str, heartbeat_interval: int, grace_period: int) -> RDBStorage:
    # Workers that start together on an empty database make its tables at the same time.
    @tenacity.retry(
        retry=tenacity.retry_if_exception_type((IntegrityError, ProgrammingError)),
        wait=tenacity.wait_random(0, 2),
        stop=tenacity.stop_after_attempt(10),
        reraise=True,
    )
    def connected() -> RDBStorage:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return _patient_storage()(
                _url(url),
                # A connection that broke while it was idle is replaced without a word.
                engine_kwargs={
                    "pool_pre_ping": True,
                    "connect_args": {"connect_timeout": CONNECT_TIMEOUT},
                },
                heartbeat_interval=heartbeat_interval,
                grace_period=grace_period,
                heartbeat_stale_trial_callback=retry,
            )

    with _opening():
        return connected()


def _patient_storage() -> type[RDBStorage]:
    """Return an RDBStorage whose calls wait up to 10 minutes for a database that is away."""
    wait = tenacity.retry(
        retry=tenacity.retry_if_exception(_is_away),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_delay(PATIENCE),
        before_sleep=tenacity.before_sleep_log(_logger, logging.WARNING),
        reraise=True,
    )
    names = [*BaseStorage.__abstractmethods__, *_CALLED]
    calls: dict[str, Callable[..., Any]] = {name: wait(getattr(RDBStorage, name)) for name in names}
    return type("PatientRDBStorage", (RDBStorage,), calls)


def _is_away(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be reached, not that a query is wrong."""
    # Optuna asks again over a connection that broke, which SQLAlchemy answers with the last kind.
    kinds = (OperationalError, InterfaceError, PendingRollbackError)
    return isinstance(error, kinds) or (
        isinstance(error, StorageInternalError) and isinstance(error.__cause__, kinds)
    )
