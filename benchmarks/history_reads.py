"""Measure the reads of a long history, for :mod:`benchmarks.history`."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from benchmarks.processes import cpu_of, deployment, memory_of
from tests.support.ports import free_port
from tests.support.postgresql import PostgresqlServer

LIMIT = 200.0  # ms
REPEAT = 7


@contextmanager
def database(name: str) -> Iterator[None]:
    """Set up the project in this process, with an empty database."""
    with PostgresqlServer(free_port()) if name == "postgresql" else nullcontext() as server:
        environment = {"DATABASE_URL": server.url()} if server else {}
        with deployment(**environment):
            yield


class Read(NamedTuple):
    """A call to measure, its target in milliseconds, and whether it must read all transitions."""

    title: str
    call: Callable[[], object]
    limit: float = float("inf")
    reads_all: bool = False


def reads(ids: list[UUID]) -> Iterator[Read]:
    from django.contrib.auth.models import User
    from django.test import Client

    from proxyhealth.health import snapshot
    from proxyhealth.history.pruning import prune
    from proxyhealth.history.recall import DatabaseMemory
    from proxyhealth.history.uptime import uptimes

    client = Client(headers={"host": "127.0.0.1"})
    client.force_login(User.objects.create_superuser("operator"))
    chance = random.Random(1)

    def get(path: str) -> None:
        response = client.get(path)
        assert response.status_code == 200, (path, response.status_code, response.content[:500])

    def history(query: str = "") -> None:
        get(f"/api/v2/workspaceproxies/{chance.choice(ids)}/history{query}")

    def memory(count: int | None) -> object:
        chosen = None if count is None else list(map(str, chance.sample(ids, min(count, len(ids)))))
        return DatabaseMemory().rows(chosen)

    yield Read("history view", history, LIMIT)
    yield Read("history view, 20 rows", lambda: history("?limit=20"), LIMIT)
    yield Read("uptime of all proxies", lambda: uptimes(snapshot()), LIMIT)
    yield Read("uptime of one", lambda: uptimes(snapshot(), [chance.choice(ids)]), LIMIT)
    yield Read("recall of 200 proxies", lambda: memory(200), LIMIT)
    yield Read("recall of all, after a loss of Redis", lambda: memory(None), reads_all=True)
    yield Read("list in the admin", lambda: get("/admin/proxyhealth/transition/"))
    yield Read("what pruning would delete", lambda: prune(dry_run=True), reads_all=True)


# A cache that holds all rows, and neither safety nor the checks of foreign keys.
_FAST_WRITES = {
    "sqlite": ("PRAGMA cache_size = -500000", "PRAGMA synchronous = OFF", "PRAGMA journal_mode = MEMORY"),
    "postgresql": (
        "SET session_replication_role = replica",
        "SET synchronous_commit = off",
        "SET maintenance_work_mem = '256MB'",
    ),
}


@contextmanager
def fast_writes() -> Iterator[None]:
    """Write many rows without safety, and make the indexes of the transitions after the block.

    The connection is closed at the end, so that reads have the usual settings.
    """
    from django.db import connection

    from proxyhealth.models import Transition

    with connection.cursor() as cursor:
        for statement in _FAST_WRITES[connection.vendor]:
            cursor.execute(statement)
    with connection.schema_editor() as editor:
        for index in Transition._meta.indexes:
            editor.remove_index(Transition, index)
    yield
    with connection.schema_editor() as editor:
        for index in Transition._meta.indexes:
            editor.add_index(Transition, index)
    connection.close()


def commit_statuses(rows: Sequence[Any]) -> None:
    """Write a snapshot, so that reads do not take the statuses from the history."""
    from proxyhealth.snapshot import ProxyStatus
    from proxyhealth.statuses import Status
    from proxyhealth.storage.client import open_cache
    from proxyhealth.storage.commit import commit
    from proxyhealth.storage.lease import take_token
    from proxyhealth.storage.merge import Round

    now = datetime.now(UTC)
    proxies = [row.as_proxy() for row in rows]
    statuses = [ProxyStatus(proxy, proxy_host="", status=Status.OK, checked_at=now) for proxy in proxies]
    commit(statuses, take_token(), full_round=Round(now, 1.0))
    with open_cache() as cache:
        cache.client.delete(cache.key("outbox"))


def backend_pid() -> int | None:
    """Return the process of PostgreSQL that serves this one."""
    from django.db import connection

    if connection.vendor == "sqlite":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def milliseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def cpu_seconds(server: int | None) -> float:
    """Return the CPU time of this process, and of the process of PostgreSQL that serves it."""
    return time.process_time() + (cpu_of(server) if server else 0.0)


def measure(name: str, proxies: int, transitions: int) -> list[str]:
    """Print the rows of one database. Return the missed targets."""
    with database(name):
        from django.db import connection

        from proxyhealth.models import WorkspaceProxy
        from tests.support.transitions import make_history

        rows = [WorkspaceProxy(name=f"proxy-{i:06}", url="http://127.0.0.1:1") for i in range(proxies)]
        WorkspaceProxy.objects.bulk_create(rows)
        begin = time.monotonic()
        with fast_writes():
            make_history(rows, transitions, end=datetime.now(UTC))
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE" if name == "postgresql" else "ANALYZE")
        made = time.monotonic() - begin
        commit_statuses(rows)
        missed = []
        print(f"\n{name}: {transitions:,} transitions of {proxies:,} proxies, made in {made:.0f} s\n")
        print("| read | queries | ms, median | max | CPU ms | peak MB | indexes |")
        print("|---|---|---|---|---|---|---|")
        for read in reads([row.pk for row in rows]):
            missed += [f"{name}, {read.title}: {problem}" for problem in measure_read(read)]
        return missed


def measure_read(read: Read) -> Iterator[str]:
    """Print the row of one read. Yield the missed targets."""
    from tests.support.transitions import explained_queries

    with explained_queries() as plans:
        read.call()
    server = backend_pid()
    begin = cpu_seconds(server)
    times = sorted(milliseconds(read.call) for _ in range(REPEAT))
    cpu = (cpu_seconds(server) - begin) * 1e3 / REPEAT
    median = statistics.median(times)
    used = ", ".join(sorted({index for plan in plans for index in plan.indexes}))
    figures = f"{median:.1f} | {times[-1]:.1f} | {cpu:.1f} | {memory_of(os.getpid()):.0f}"
    print(f"| {read.title} | {len(plans)} | {figures} | {used} |", flush=True)
    if median >= read.limit:
        yield f"{median:.0f} ms, target: below {read.limit:.0f} ms"
    for plan in plans:
        if plan.scans_all_transitions and not read.reads_all:
            yield f"no index is used\n{plan.sql[-300:]}\n{plan.text[:1000]}"
