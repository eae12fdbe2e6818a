"""A PostgreSQL server in a temporary directory: without passwords, and without safety from crashes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import psycopg

from tests.support.programs import find_program
from tests.support.proxies import wait_for

# The data need not survive a crash, and nobody needs the files of another test run.
_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "jit": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
}


def find_initdb() -> Path:
    """Return the path of initdb. Debian has it, beside the server, in a directory that is not in PATH."""
    (*_, found) = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [None]
    return found or Path(os.path.realpath(find_program("initdb", "postgresql")))


def as_postgres() -> list[str]:
    """Return the beginning of a command: PostgreSQL refuses to run as root."""
    user = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    # A process that was killed takes its server with it.
    return ["setpriv", *user, "--pdeathsig=INT", "--"]


def init_database(folder: Path) -> None:
    """Make ``folder`` the directory of a server with the superuser ``postgres``."""
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    options = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
    command = [*as_postgres(), str(find_initdb()), f"--pgdata={folder}", *options]
    subprocess.run(command, check=True, capture_output=True, cwd="/")


class PostgresqlServer:
    """A server on ``port``, while the ``with`` block runs. A test that stops it starts it again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="proxyhealth-postgresql-"))
        try:
            init_database(self._folder)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def url(self, database: str = "postgres") -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = [f"--{name}={value}" for name, value in {**_OPTIONS, "port": str(self.port)}.items()]
        server = find_initdb().with_name("postgres")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*as_postgres(), str(server), "-D", str(self._folder), *options],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        wait_for(self._is_ready, 30)

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Close all connections, and stop the server."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None
