"""Sending the signal ``status_changed`` for each transition in the database, at least once.

A row whose signal is left has ``signal_due_at``. A process claims rows before it sends their signals: it
counts an attempt, and moves ``signal_due_at`` to the time of the next one. So a row whose signal failed needs
no update, and neither does one whose process was killed.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from asgiref.sync import async_to_sync
from celery.exceptions import SoftTimeLimitExceeded
from django.db.models import QuerySet
from django.utils import timezone

from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.models.rows import using_database_of
from proxyhealth.signals import status_changed
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.storage.sender import note_hanging, only_sender, read_hanging
from proxyhealth.texts import without_passwords
from proxyhealth.utils import aware, rfc3339
from proxyhealth.validators import parse_proxy_url

logger = logging.getLogger(__name__)

# Rows that a process claims at once, for the first and the second attempt; then one by one. If a receiver
# kills the process, only the first attempts of other rows are lost with it.
_BATCHES = (100, 10)

# Seconds by which the clock of the worker that recorded a change may be ahead.
_CLOCK_DIFFERENCE = 5

# Seconds between attempts: one minute, doubled each time, at most four hours. Together 24 hours.
_PAUSES = [min(60 * 2**attempt, 4 * 3600) for attempt in range(13)]


def are_signals_due() -> bool:
    """Return True if a signal has to be sent now. Raise ``HistoryUnavailable``."""
    if not status_changed.has_listeners(WorkspaceProxy):
        return False
    with using_database_of(Transition):
        return _due().exists()


def _due() -> QuerySet[Transition]:
    now = timezone.now() + timedelta(seconds=_CLOCK_DIFFERENCE)
    return Transition.objects.primary().filter(signal_due_at__lte=now)


def send_signals(seconds: float | None = None, patience: float | None = None) -> bool:
    """Send all signals that are due. Return True if none is left, or if another process sends them.

    Otherwise ``seconds`` are over, or Celery's time limit has ended a receiver. That one is skipped for some
    minutes, so that it costs this time once, and not once per row. So is a receiver that still runs after
    ``patience`` seconds, because it ignores the limit, or the pool has none. Their signals fail, and are
    tried again later. Raise ``HistoryUnavailable``.
    """
    run = _Run(float("inf") if seconds is None else time.monotonic() + seconds)
    while are_signals_due():  # also after the last one: others send nothing while this process does
        with only_sender() as held, using_database_of(Transition):
            if not held:
                return True
            with _watching(run, patience):
                if not run.send_all():
                    return False
    return True


@contextmanager
def _watching(run: "_Run", patience: float | None) -> Iterator[None]:
    """Note the receiver that still runs after ``patience`` seconds, while it does, from a thread."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(patience):
            if name := run.current:
                logger.error("signal receiver hangs receiver=%s", name)
                note_hanging(name)

    if patience is not None:
        threading.Thread(target=watch, name="proxyhealth signals", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


@dataclass
class _Run:
    """Signals that one task sends, until ``end`` on the monotonic clock.

    ``current`` is the name of the receiver that runs, or empty.
    """

    end: float
    current: str = ""
    _failed: set[str] = field(default_factory=set)

    def send_all(self) -> bool:
        """Send what is due. Return False if something is left."""
        return all(self._send(rows) for rows in iter(_claim, []))

    def _send(self, rows: list[Transition]) -> bool:
        """Send the signals of claimed rows, in order. Release those that are left, and return False."""
        sent, tried = [], 0
        try:
            hanging = read_hanging()
            for row, status in zip(rows, _statuses_of(rows), strict=True):
                if time.monotonic() >= self.end:
                    break
                if self._send_one(row, status, hanging):
                    sent.append(row.pk)
                tried += 1
        except _TookTooLong:
            pass
        finally:
            _finish(sent, rows[tried:])
        return tried == len(rows)

    def _send_one(self, row: Transition, status: ProxyStatus | None, hanging: set[str]) -> bool:
        """Call all receivers but those that hang. Return True if each has succeeded."""
        succeeded = True
        for name, receiver in _receivers():
            if name in hanging:
                succeeded = False
                continue
            self.current = name
            try:
                receiver(
                    signal=status_changed,
                    sender=WorkspaceProxy,
                    proxy_status=status,
                    before=row.before,
                    transition=row,
                )
            except SoftTimeLimitExceeded:
                logger.error("signal receiver took too long receiver=%s transition=%d", name, row.pk)
                note_hanging(name)
                raise _TookTooLong from None
            except Exception as error:
                succeeded = False
                self._log_failure(name, row, error)
            finally:
                self.current = ""
        return succeeded

    def _log_failure(self, name: str, row: Transition, error: Exception) -> None:
        # Thousands of rows may fail for one reason. One traceback per task is enough.
        first, self._failed = name not in self._failed, self._failed | {name}
        logger.error(
            "signal receiver failed, it is called again later receiver=%s transition=%d attempt=%d error=%s",
            name,
            row.pk,
            row.signal_attempts,
            without_passwords(repr(error)),
            exc_info=error if first else None,
        )


class _TookTooLong(Exception):
    """Celery's time limit has ended a receiver, so the task must end, too."""


def _finish(sent: Collection[int], left: Sequence[Transition]) -> None:
    """Mark the rows whose signals are sent, and make those due that are left."""
    rows = Transition.objects.primary()
    rows.filter(pk__in=sent).update(signal_due_at=None)
    if left:
        attempts = left[0].signal_attempts
        claimed = rows.filter(pk__in=[row.pk for row in left], signal_attempts=attempts)
        claimed.update(signal_due_at=timezone.now(), signal_attempts=attempts - 1)


def _receivers() -> list[tuple[str, Any]]:
    """Return the receivers and their names. Django's ``send_robust()`` could not skip one of them."""
    plain, coroutines = status_changed._live_receivers(WorkspaceProxy)
    return [(_name_of(each), each) for each in plain] + [
        (_name_of(each), async_to_sync(each)) for each in coroutines
    ]


def _name_of(receiver: Any) -> str:
    name = getattr(receiver, "__qualname__", None) or type(receiver).__qualname__
    return f"{receiver.__module__}.{name}"


def _claim() -> list[Transition]:
    """Return the next rows, which this process must send, in order; first those that were never tried."""
    following = _due().order_by("signal_attempts", "pk").values_list("pk", "signal_attempts")
    due = list(following[: _BATCHES[0]])
    if not due:
        return []
    attempts = due[0][1]
    size = _BATCHES[attempts] if attempts < len(_BATCHES) else 1
    ids = [pk for pk, tried in due if tried == attempts][:size]
    rows = Transition.objects.primary().filter(pk__in=ids)
    if attempts >= len(_PAUSES):
        _give_up(rows.filter(signal_attempts=attempts))
        return _claim()
    count = rows.filter(signal_attempts=attempts, signal_due_at__isnull=False).update(
        signal_attempts=attempts + 1,
        signal_due_at=timezone.now() + timedelta(seconds=_PAUSES[attempts]),
    )
    claimed = list(rows.order_by("pk"))
    # If another process has claimed some of them, that one goes on. The others are due after the pause.
    return claimed if count == len(claimed) else []


def _give_up(rows: QuerySet[Transition]) -> None:
    for row in rows:
        logger.error("signal given up after %d attempts transition=%d", row.signal_attempts, row.pk)
    rows.update(signal_due_at=None)


def _statuses_of(rows: Sequence[Transition]) -> list[ProxyStatus | None]:
    # Not by a join: a router may have put the tables into two databases.
    known = WorkspaceProxy.objects.primary().filter(pk__in={row.proxy_uuid for row in rows})
    proxies = {proxy.id: proxy for proxy in known.as_proxies()}
    return [_status_of(row, proxies.get(row.proxy_uuid)) for row in rows]


def _status_of(row: Transition, proxy: Proxy | None) -> ProxyStatus | None:
    """Return the status that began. Without a row of the proxy, its values are empty."""
    if row.after == Transition.REMOVED:
        return None
    proxy = proxy or Proxy.from_json({"id": str(row.proxy_uuid), "name": row.proxy_name})
    try:
        host = parse_proxy_url(proxy.url).netloc
    except ValueError:
        host = ""
    at = aware(row.at)
    report = row.report if isinstance(row.report, dict) else {}
    columns: dict[str, list[Any]] = {
        "proxy_host": [host],
        "status": [row.after],
        "reason": [row.reason],
        "errors": [report.get("errors")],
        "warnings": [report.get("warnings")],
        "since": [rfc3339(at)],
    }
    (status,) = ProxyStatus.from_columns([proxy], [at], columns)
    return status
