"""The last confirmed statuses, from the database, for a process that has no snapshot and can read none.

Without them, a deployment while Redis is down would take every region away.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.models import Confirmed, WorkspaceProxy
from proxyhealth.report import EMPTY_REPORT, HealthReport
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.texts import without_passwords
from proxyhealth.utils import FrozenMapping, PerProcess, aware, rfc3339
from proxyhealth.validators import parse_proxy_url

logger = logging.getLogger(__name__)

# In seconds:
_TIMEOUT = 1.0  # wait for the database
_PAUSE = 2.0  # minimum time between two queries

# Minimum time between two queries, divided by the duration of the last one: 10,000 proxies take 0.3 s.
_SHARE = 10

_EPOCH = datetime.fromtimestamp(0, UTC)


class _Fallback:
    """The statuses as this process last read them from the database, or None."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._rows: Sequence[Confirmed] = ()
        self._error = ""
        self._begun_at, self._took = -math.inf, 0.0
        self._done = threading.Event()
        self._done.set()

    def read(self) -> Snapshot | None:
        """Return the statuses, and query them if that is due. Wait for the database, but not for long.

        The query has a thread and a connection of its own, because the caller may be part of a transaction,
        or async. A database that hangs keeps one thread.
        """
        now = time.monotonic()
        pause = max(_PAUSE, conf.READ_INTERVAL, _SHARE * self._took)
        if self._done.is_set() and now - self._begun_at >= pause:
            self._begun_at = now
            self._done.clear()
            try:
                threading.Thread(target=self._refresh, name="proxyhealth fallback", daemon=True).start()
            except RuntimeError:  # no more threads
                self._done.set()
        return self._snapshot if self._done.wait(max(0.0, self._begun_at + _TIMEOUT - now)) else None

    def _refresh(self) -> None:
        try:
            error = self._query()
        except Exception as failure:
            self._snapshot, self._rows, error = None, (), without_passwords(failure)
        is_new = bool(error) and not self._error
        self._took, self._error = time.monotonic() - self._begun_at, error
        self._done.set()
        if is_new:  # once, not after each query
            logger.warning("not all confirmed statuses can be read from the database: %s", error)

    def _query(self) -> str:
        """Query the statuses, and return an error of an unreadable row, if there is one."""
        try:
            rows, errors = WorkspaceProxy.objects.primary().active().with_last_transition()
            if rows != self._rows:  # readers keep what they have made of the same object
                self._snapshot, self._rows = _snapshot_of(rows), rows
        finally:
            connections.close_all()  # those of this thread
        return repr(errors[0]) if errors else ""


def _snapshot_of(rows: Sequence[Confirmed]) -> Snapshot | None:
    """Return the statuses as a snapshot, or None if the history has no full round."""
    if not rows or rows[0].round_token is None:
        return None
    checked_at = _EPOCH + timedelta(microseconds=rows[0].round_token)
    stale_at = checked_at + timedelta(seconds=conf.STALE_AFTER)
    found = [(row, host) for row in rows if (host := _host_of(row)) is not None]
    found.sort(key=lambda each: each[0].proxy.name.lower())
    times = [aware(row.at) for row, _ in found]
    reports = [_report_of(row.report) for row, _ in found]
    columns: dict[str, list[Any]] = {
        "proxy_host": [host for _, host in found],
        "status": [row.status for row, _ in found],
        "reason": [row.reason for row, _ in found],
        "errors": [report.errors for report in reports],
        "warnings": [report.warnings for report in reports],
        "since": list(map(rfc3339, times)),
    }
    proxies = [row.proxy for row, _ in found]
    statuses = ProxyStatus.from_columns(proxies, [max(checked_at, at) for at in times], columns)
    return Snapshot(
        statuses=FrozenMapping({status.proxy.id: status for status in statuses}),
        checked_at=checked_at,
        stale_at=stale_at,
        result_tokens=[rows[0].round_token] * len(proxies),
        fresh_until=time.monotonic() + (stale_at - datetime.now(UTC)).total_seconds(),
    )


def _host_of(row: Confirmed) -> str | None:
    """Return the host of the proxy, or None if its last status is certainly not that of its present URL."""
    if row.status == "removed":
        return None
    if not row.proxy.url:
        return "" if row.status == Status.UNREGISTERED else None
    try:
        host = parse_proxy_url(row.proxy.url).netloc
    except ValueError:
        return "" if row.reason == Reason.INVALID_URL else None
    return None if row.status == Status.UNREGISTERED or row.reason == Reason.INVALID_URL else host


def _report_of(report: Any) -> HealthReport:
    if not report:
        return EMPTY_REPORT
    return HealthReport.sanitized(_texts_of(report, "errors"), _texts_of(report, "warnings"))


def _texts_of(report: Any, key: str) -> list[str]:
    # Other programs may have written anything.
    texts = report.get(key) if isinstance(report, dict) else None
    return [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []


_fallback = PerProcess(_Fallback)

# Drops this process's copy.
forget = _fallback.reset


def read() -> Snapshot | None:
    """Return the last confirmed statuses of the active proxies, or None if the database has or gives none.

    Make at most one query per ``READ_INTERVAL``, and none in a test that is isolated.
    """
    return None if isolation.is_isolated() else _fallback.value.read()
