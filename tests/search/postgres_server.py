"""A PostgreSQL server of the tests' own, that can be stopped and started again."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = ("initdb", "pg_ctl", "postgres")


@dataclass(frozen=True)
class Server:
    """A server on a port of this host, without passwords.

    Args:
        binaries: The folder of PostgreSQL's programs.
        folder: Holds all that the server writes; belongs to `account`.
        port: Where it listens.
        account: The user that runs it, as arguments of `subprocess.run`.
    """

    binaries: Path
    folder: Path
    port: int
    account: dict[str, Any]

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += " -c unix_socket_directories=''"
        self._call("pg_ctl", "start", "-w", "-t", "30", "-l", "log", "-o", options)

    def stop(self) -> None:
        """Stop the server as in a crash: connections break without notice."""
        self._call("pg_ctl", "stop", "-w", "-m", "immediate")

    def create(self, database: str) -> str:
        """Return the url of a new, empty database."""
        import psycopg

        where = f"postgresql://ktg@127.0.0.1:{self.port}"
        with psycopg.connect(f"{where}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
        return f"{where}/{database}"

    def initialize(self) -> None:
        self._call("initdb", "-U", "ktg", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def _call(self, program: str, *arguments: str) -> None:
        with open(self.folder / "said", "wb+") as said:  # a pipe would wait for the server's end
            result = subprocess.run(
                [self.binaries / program, "-D", "data", *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                **self.account,
            )
        log = self.folder / "log"
        text = (self.folder / "said").read_text() + (log.read_text() if log.exists() else "")
        assert result.returncode == 0, f"{program}: {text[-2000:]}"


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; Debian does not put it on the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if all((f / name).exists() for name in NEEDED)), None)


@contextmanager
def serve(programs: Path) -> Iterator[Server]:
    """A running server in a folder that is removed afterwards."""
    # Not pytest's folder: that is closed to the user that runs the server for root.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = Server(programs, folder, free_port(), _account(folder))
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _account(folder: Path) -> dict[str, Any]:
    """Give a folder to the user that runs the server, because the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {user.pw_name for user in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
