"""Many proxies at once: which, how many together, and until when."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.models.functions import Lower

from proxyhealth.conf import conf
from proxyhealth.models import WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.probe import probe
from proxyhealth.report import HealthReport, Proxy, ProxyStatus, Reason, Status
from proxyhealth.validators import parse_proxy_url

_COLUMNS = tuple(field.name for field in fields(Proxy))


class RoundFailed(Exception):
    """A round, or the check of a few proxies, came to nothing; the snapshot is as it was."""


def read_proxies(ids: Iterable[UUID] | None = None) -> list[Proxy]:
    """The active proxies, or those of them with these ids, by name; raises ``RoundFailed``."""
    # A replica may not know yet what has just been saved.
    alias = router.db_for_write(WorkspaceProxy)
    rows = WorkspaceProxy.objects.using(alias).active()
    if ids is not None:
        rows = rows.filter(pk__in=list(ids))
    try:
        return values_of(rows)
    except DatabaseError as error:
        # A long-lived process must not keep a connection that a restart of the server has cut.
        connections[alias].close_if_unusable_or_obsolete()
        raise RoundFailed(f"the proxies cannot be read from the database: {error}") from error


def values_of(rows: WorkspaceProxyQuerySet) -> list[Proxy]:
    """The rows as plain values: what leaves the ORM, and may enter a thread."""
    return [Proxy(**row) for row in rows.order_by(Lower("name")).values(*_COLUMNS)]


def value_of(row: WorkspaceProxy) -> Proxy:
    return Proxy(**{column: getattr(row, column) for column in _COLUMNS})


def time_limit(count: int) -> float:
    """Seconds within which a round of ``count`` proxies ends, whatever they do."""
    # Each turn of CONCURRENCY probes takes TIMEOUT at the most; one turn more is for a machine
    # that is busy with something else.
    turns = math.ceil(count / conf.CONCURRENCY) + 1
    return turns * conf.TIMEOUT + 1


def probe_all(proxies: Sequence[Proxy], checked_at: datetime) -> list[ProxyStatus]:
    """A status for every one of ``proxies``, in their order.

    ``CONCURRENCY`` probes run at once, each in a thread. After :func:`time_limit` what has not
    answered is ``unreachable`` (``timeout``), and its thread is left to itself. Raises
    ``RoundFailed`` if not a single thread can be started.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, ProxyStatus]] = queue.SimpleQueue()
    over = threading.Event()
    for index in range(len(proxies)):
        todo.put(index)

    def work() -> None:
        while not over.is_set():
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            done.put((index, probe(proxies[index], checked_at)))

    end = time.monotonic() + time_limit(len(proxies))
    started = 0
    try:
        for _ in range(min(conf.CONCURRENCY, len(proxies))):
            # Daemons, so that a process can end although a probe of it does not.
            threading.Thread(target=work, name="probe", daemon=True).start()
            started += 1
    except RuntimeError as error:
        if not started:
            raise RoundFailed(f"no thread can be started: {error}") from error

    statuses: dict[int, ProxyStatus] = {}
    try:
        while len(statuses) < len(proxies):
            index, status = done.get(timeout=max(0.0, end - time.monotonic()))
            statuses[index] = status
    except queue.Empty:
        pass
    finally:
        over.set()
    return [
        statuses[index] if index in statuses else _unanswered(proxy, checked_at)
        for index, proxy in enumerate(proxies)
    ]


def _unanswered(proxy: Proxy, checked_at: datetime) -> ProxyStatus:
    try:
        host = parse_proxy_url(proxy.url).netloc
    except ValueError:
        host = ""
    return ProxyStatus(
        proxy,
        host,
        status=Status.UNREACHABLE,
        reason=Reason.TIMEOUT,
        report=HealthReport.of(["request to proxy failed: no judgement before the end of the round"]),
        checked_at=checked_at,
    )
