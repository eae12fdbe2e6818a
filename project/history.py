"""A day of made-up history, so that the pages of a new demo show more than its first minute.

Only ``make run`` creates it, in a database of its own. Each transition has a warning that says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db import DEFAULT_DB_ALIAS, transaction

from project.startup import DEMO_MODE, WITH_HISTORY
from proxyhealth.history import outages
from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.probes import add_probes

MARK = "Made up for the demo."

DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# No rounds ran then. All times are before the end of the history.
GAP_START = timedelta(hours=15, minutes=21)
GAP_END = timedelta(hours=14, minutes=47)


class Cause(NamedTuple):
    """The result of a probe."""

    status: Status
    reason: Reason = Reason.NONE
    errors: tuple[str, ...] = ()


OK = Cause(Status.OK)
UNREGISTERED = Cause(Status.UNREGISTERED)
REFUSED = Cause(Status.UNREACHABLE, Reason.CONNECT, ("request to proxy failed: Connection refused",))
SILENT = Cause(Status.UNREACHABLE, Reason.TIMEOUT, ("request to proxy failed: no response within 3 s",))
BROKEN = Cause(Status.UNHEALTHY, Reason.STATUS_CODE, ("unexpected status code 500 Internal Server Error",))
FOREIGN = Cause(Status.UNHEALTHY, Reason.NOT_JSON, ("invalid health report: its content type is text/html",))
CUT_OFF = Cause(
    Status.UNHEALTHY,
    Reason.REPORT_ERRORS,
    ("The control plane cannot be reached from here: connection timed out.",),
)
OVERLOADED = Cause(Status.UNHEALTHY, Reason.REPORT_ERRORS, ("The queue of connections is full.",))

# The changes of each proxy after the start. The last one is what the demo fleet does now.
CHANGES: dict[str, list[tuple[str, Cause]]] = {
    # A restart, and a release.
    "paris": [("19:42:10", REFUSED), ("19:38:50", OK), ("04:05:30", REFUSED), ("04:04:20", OK)],
    # It flaps for 40 minutes.
    "sao-paulo": [
        ("08:31:20", OVERLOADED),
        ("08:29:40", OK),
        ("08:27:10", OVERLOADED),
        ("08:22:30", OK),
        ("08:20:50", SILENT),
        ("08:19:10", OVERLOADED),
        ("08:15:30", OK),
        ("08:14:50", OVERLOADED),
        ("08:07:20", OK),
        ("08:04:10", OVERLOADED),
        ("07:52:40", OK),
    ],
    "sydney": [("11:14:30", CUT_OFF), ("11:02:00", OK), ("02:48:40", CUT_OFF)],
    # The second one was found after the gap.
    "tokyo": [("14:47:00", REFUSED), ("14:41:20", OK), ("00:36:10", BROKEN)],
    "mumbai": [("09:12:50", REFUSED), ("09:10:00", FOREIGN)],
    # A long outage: first it responds late, then not at all.
    "cape-town": [("22:15:40", SILENT), ("22:11:30", OK), ("06:51:20", OVERLOADED), ("06:37:00", SILENT)],
    "dublin": [("18:20:20", REFUSED)],
    "oslo": [],
}
FIRST = {"oslo": UNREGISTERED}  # all others began healthy


def make_up_history(end: datetime) -> bool:
    """Create the history of the day before ``end``. Return False if the database has a history already.

    Raise ``RuntimeError`` outside of a demo with a database and a Redis of its own.
    """
    if os.environ.get(DEMO_MODE) != WITH_HISTORY:
        raise RuntimeError(f"a history is made up only for the demo, and {DEMO_MODE} is not {WITH_HISTORY}")
    if any(model._default_manager.exists() for model in (Transition, Gap, Watch)):
        return False
    with transaction.atomic():
        outages.record(DEFAULT_DB_ALIAS, Transition.objects.bulk_create(_transitions(end)))
        Gap.objects.create(
            start=end - GAP_START,
            end=end - GAP_END,
            why=Gap.Why.NO_ROUNDS,
            token=_microseconds(end - GAP_END - _EPOCH),
            microseconds=_microseconds(GAP_START - GAP_END),
        )
        # The first round continues from here: it finds an empty Redis, and what the last rows say.
        Watch.objects.create(pk=1, token=_microseconds(end - _EPOCH), watched=_watched(timedelta(0)))
    return True


def _transitions(end: datetime) -> list[Transition]:
    """Return the rows in the order of time, as rounds would have written them."""
    proxies = {proxy.name: proxy for proxy in WorkspaceProxy.objects.active()}
    rows = [
        Transition(
            proxy=proxies[name],
            proxy_uuid=proxies[name].pk,
            proxy_name=name,
            before=before,
            after=cause.status,
            at=end - ago,
            reason=cause.reason,
            report={**({"errors": list(cause.errors)} if cause.errors else {}), "warnings": [MARK]},
            token=_microseconds(end - ago - _EPOCH),
            watched=_watched(ago),
        )
        for name in CHANGES
        for before, cause, ago in _story(name)
    ]
    return sorted(rows, key=lambda row: row.at)


def _story(name: str) -> Iterator[tuple[str, Cause, timedelta]]:
    """Yield the changes of a proxy: the status before, the cause, and how long before the end it began."""
    before: str = Status.UNKNOWN
    for text, cause in [("24:00:00", FIRST.get(name, OK)), *CHANGES[name]]:
        hours, minutes, seconds = map(int, text.split(":"))
        yield before, cause, timedelta(hours=hours, minutes=minutes, seconds=seconds)
        before = cause.status


def _watched(ago: timedelta) -> int:
    """Return the time that rounds had watched the proxies, in microseconds. It stands still in the gap."""
    in_gap = max(timedelta(0), GAP_START - max(ago, GAP_END))
    return _microseconds(DAY - ago - in_gap)


def _microseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


def make_up_probes(end: datetime) -> None:
    """Store the recent probes of this history: one in two minutes, and one per change.

    Raise ``StoreError``.
    """
    proxies = {proxy.name: proxy.as_proxy() for proxy in WorkspaceProxy.objects.active()}
    causes = {name: [(ago, cause) for _, cause, ago in _story(name)] for name in CHANGES}
    times = [timedelta(minutes=minutes) for minutes in range(2, 24 * 60, 2)]
    changes = [ago for story in causes.values() for ago, _ in story]
    for ago in sorted({*times, *changes}, reverse=True):
        if not GAP_END < ago <= GAP_START:
            add_probes(
                _probe(proxies[name], [cause for begin, cause in story if begin >= ago][-1], end - ago)
                for name, story in causes.items()
            )


def _probe(proxy: Proxy, cause: Cause, at: datetime) -> ProxyStatus:
    responds = cause.status in (Status.OK, Status.UNHEALTHY)
    latency = (2 + at.minute * len(proxy.name) % 5) / 1000 if responds else None
    return ProxyStatus(proxy, "", cause.status, cause.reason, checked_at=at, latency=latency)
