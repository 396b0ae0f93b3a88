"""Where a study is kept: a journal for the workers of one host, a database for those of several."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import tenacity
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal._file import get_lock_file
from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, make_url, text
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
)

from ..errors import RecipeError, did_you_mean, first_line, located
from ..recipe.search_config import SearchConfig
from ..recipe.search_problems import storage_problem
from .journal import JOURNAL, Journal, journal_of
from .liveness import retry

PATIENCE = 600.0  # seconds that a database may be away
MAKING = 0x6B7467  # "ktg": the lock of a database under which a study is made
CONNECT_TIMEOUT = 10  # seconds; without it, a host that drops what it is sent takes minutes to fail

# What Optuna's cache calls on an RDBStorage, beside the methods that every storage has.
_CALLED = (
    *("record_heartbeat", "get_trial_id_from_study_id_trial_number", "_get_stale_trial_ids"),
    *("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id"),
)

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger(__name__)


def open_storage(search: SearchConfig, directory: Path, lost: Collection[str] = ()) -> BaseStorage:
    """Return the storage that a recipe asks for.

    Args:
        search: The section of the recipe.
        directory: The search's, for a journal.
        lost: Hosts whose workers in a journal are dead, as the user says.

    Raises:
        RecipeError: There is no such storage.
    """
    where = search.storage
    if where is None or "://" not in where:
        with located("search.storage"):
            journal = Journal(str(directory / JOURNAL if where is None else where), lost)
            journal.repair()
            return JournalStorage(journal)
    return _database(where, search.heartbeat_interval, search.grace_period)


def check_storage(where: str | None) -> None:
    """Check that a study can be kept there, as far as that shows without a look at the place.

    Args:
        where: As a recipe's `search.storage` says.

    Raises:
        RecipeError: It is a database that is not for several workers.
    """
    if where is None or "://" not in where:
        return
    kind = make_url(where).get_backend_name()
    said = "should be a journal (null, or a path) on one host, or a postgresql://... for several."
    if kind == "sqlite":
        said += " Found SQLite, which breaks when workers start together."
        raise RecipeError([f"search.storage: {said}"])
    if kind != "postgresql":  # the URL may hold a password, even where its kind should stand
        near = did_you_mean(kind, ["postgresql"])
        raise RecipeError(
            [f"search.storage: {said}{near or ' Found the URL of another database.'}"]
        )


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
            return JournalStorage(Journal(str(path)))
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


@contextmanager
def making(storage: BaseStorage) -> Iterator[None]:
    """Wait until no other worker makes a study in a storage, and let none do so in this block.

    The lock ends with the process that holds it, also when that process is killed.

    Args:
        storage: The storage, as `open_storage` returns it, or as a study has it.
    """
    journal = journal_of(storage)
    database = getattr(storage, "_backend", storage)  # a study puts Optuna's cache around it
    if journal is not None:
        with get_lock_file(journal.making):
            yield
    elif isinstance(database, RDBStorage) and database.engine.dialect.name == "postgresql":
        connection = _patient(_locked)(database.engine)
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # a connection that broke has given the lock back
                connection.close()
    else:  # in memory, where there is one worker
        yield


def _locked(engine: Engine) -> Connection:
    """Return a connection that holds the lock under which a study is made."""
    try:
        connection = engine.connect()
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
    except SQLAlchemyError as error:
        raise StorageInternalError(first_line(error)) from error
    return connection


def _url(url: str) -> str:
    """Return the URL as Optuna wants it.

    Raises:
        RecipeError: It is not of a database for several workers.
    """
    check_storage(url)
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
    names = [*BaseStorage.__abstractmethods__, *_CALLED]
    calls: dict[str, Callable[..., Any]] = {
        name: _patient(getattr(RDBStorage, name)) for name in names
    }
    return type("PatientRDBStorage", (RDBStorage,), calls)


def _patient(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call that waits up to 10 minutes for a database that is away."""
    return tenacity.retry(
        retry=tenacity.retry_if_exception(_is_away),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_delay(PATIENCE),
        before_sleep=tenacity.before_sleep_log(_logger, logging.WARNING),
        reraise=True,
    )(call)


def _is_away(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be reached, not that a query is wrong."""
    # Optuna asks again over a connection that broke, which SQLAlchemy answers with the last kind.
    kinds = (OperationalError, InterfaceError, PendingRollbackError)
    return isinstance(error, kinds) or (
        isinstance(error, StorageInternalError) and isinstance(error.__cause__, kinds)
    )
