"""The Python API: the statuses, the hosts, and a round on demand.

Only :func:`force_update` waits for proxies. While Redis is down, reads return the last copy of this process,
marked as stale. A process without a copy then reads the last confirmed statuses from the database, in a
thread. Of the reads, only :func:`statuses_of`, :func:`uptime` and :func:`uptimes` query the database for
their caller, and raise its errors. :func:`silenced` may query it, too, but raises none of them. Only
:func:`recent_probes` and :func:`last_trace` ask Redis each time. All of them raise
``ImproperlyConfigured`` for an invalid setting, which ``manage.py check`` reports.

Each function has a version for async code, whose name begins with ``a`` and which does not block the event
loop. All of them share the copy of the process.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connections
from django.utils.asyncio import async_unsafe

from proxyhealth import isolation
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.history import uptime as history
from proxyhealth.history.outages import acknowledge, unacknowledge
from proxyhealth.history.uptime import Uptimes
from proxyhealth.models import Outage, WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.models.outages import OutageQuerySet
from proxyhealth.notifications import silences
from proxyhealth.probing.pool import OnProgress
from proxyhealth.report import HealthReport
from proxyhealth.rounds import runner, steps
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.shared_copy import SharedCalls
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.lease import RoundOutcome
from proxyhealth.storage.probes import RecentProbe, read_probes
from proxyhealth.storage.traces import read_trace
from proxyhealth.trace import ProbeTrace
from proxyhealth.utils import PerProcess
from proxyhealth.validators import parse_proxy_url

logger = logging.getLogger(__name__)

__all__ = [
    "ProbeTrace",
    "RecentProbe",
    "RoundFailed",
    "aacknowledge",
    "acknowledge",
    "aforce_update",
    "ahealth_status",
    "alast_trace",
    "aproxy_hosts",
    "arecent_probes",
    "arequest_check",
    "asilenced",
    "asnapshot",
    "astatus_of",
    "astatuses_of",
    "aunacknowledge",
    "auptime",
    "auptimes",
    "force_update",
    "health_status",
    "last_trace",
    "outages",
    "proxy_hosts",
    "recent_probes",
    "request_check",
    "silenced",
    "snapshot",
    "status_of",
    "statuses_of",
    "unacknowledge",
    "uptime",
    "uptimes",
]


def health_status() -> Mapping[UUID, ProxyStatus]:
    """Return the status of each proxy in the snapshot by id, or an empty mapping before the first check."""
    return reader.read().statuses


async def ahealth_status() -> Mapping[UUID, ProxyStatus]:
    """Return what :func:`health_status` returns."""
    return (await reader.aread()).statuses


def proxy_hosts(*, healthy_only: bool = False) -> list[str]:
    """Return ``host[:port]`` of the proxies in the snapshot with a valid URL, or only of the healthy ones.

    A proxy that was not probed yet is missing. All callers share this read-only list. To change it, make a
    copy.
    """
    snapshot = reader.read()
    return snapshot.healthy_hosts if healthy_only else snapshot.hosts


async def aproxy_hosts(*, healthy_only: bool = False) -> list[str]:
    """Return what :func:`proxy_hosts` returns."""
    snapshot = await reader.aread()
    return snapshot.healthy_hosts if healthy_only else snapshot.hosts


def snapshot() -> Snapshot:
    """Return all statuses, when they were checked, and whether and why they are stale."""
    return reader.read()


async def asnapshot() -> Snapshot:
    """Return what :func:`snapshot` returns."""
    return await reader.aread()


@async_unsafe("force_update() blocks the event loop. In async code, await aforce_update().")
def force_update(on_progress: OnProgress | None = None) -> Snapshot:
    """Run a full round in this process, and return the snapshot after it.

    First wait for a running round to end; callers that wait share one round. The round takes up to about
    ``TIMEOUT`` seconds for each ``CONCURRENCY`` proxies. Raise ``RoundFailed`` if the database or the cache
    fails, the prober is offline, or the other round does not end. Call ``on_progress`` again and again with
    the number of proxies that are probed, and that of all.

    A failed round is counted in the cache. It does not change the statuses, with two exceptions: it may have
    committed the finished shards of an earlier round, or, if Redis failed during the commit, its own results.
    """
    if substitute := isolation.current():
        return substitute.force_update()
    wait = steps.lease_limit(len(reader.read().statuses))  # a round that takes longer hangs
    if runner.run_now(wait, on_progress) is RoundOutcome.BUSY:
        raise RoundFailed(f"another round is still running after {wait:.0f} s")
    return reader.read_anew()


async def aforce_update() -> Snapshot:
    """Run a full round as :func:`force_update` does, in a thread of its own with its own database connection.

    Coroutines of this process that wait for the same round share the thread. If all of them are cancelled,
    the round goes on to its end, so that it leaves no lease behind.
    """
    if await sync_to_async(_is_in_transaction)():  # as in a TestCase: only this thread sees its rows
        return await sync_to_async(force_update)()
    return await _rounds.value.run(_update_and_disconnect)


_rounds = PerProcess[SharedCalls[Snapshot]](lambda: SharedCalls("proxyhealth round"))


def _is_in_transaction() -> bool:
    return connections[WorkspaceProxy.objects.primary().db].in_atomic_block


def _update_and_disconnect() -> Snapshot:
    try:
        return force_update()
    finally:
        connections.close_all()  # only those of this thread


async def arequest_check(ids: Iterable[UUID] | None = None) -> None:
    """Request a check as :func:`request_check` does, and wait until the broker has it. Raise its errors.

    While the broker is down, this takes many seconds. The request is sent even if this coroutine is
    cancelled.
    """
    await asyncio.wrap_future(await sync_to_async(request_check)(ids))


def statuses_of(rows: WorkspaceProxyQuerySet, snapshot: Snapshot | None = None) -> list[ProxyStatus]:
    """Return the status of each row, sorted by name, with one query. Raise the errors of the database.

    The values are those of the row. The status is ``unknown`` if no probe has used the URL of the row yet,
    and ``unhealthy`` if that URL is not valid.
    If you show a ``snapshot`` beside the statuses, pass it, so that both agree.
    """
    statuses = (snapshot or reader.read()).statuses
    return [join(proxy, statuses.get(proxy.id)) for proxy in rows.as_proxies()]


async def astatuses_of(rows: WorkspaceProxyQuerySet, snapshot: Snapshot | None = None) -> list[ProxyStatus]:
    """Return what :func:`statuses_of` returns."""
    return await sync_to_async(statuses_of)(rows, snapshot or await reader.aread())


def status_of(row: WorkspaceProxy) -> ProxyStatus:
    """Return the status of a loaded row, as :func:`statuses_of` does, without a query."""
    return join(row.as_proxy(), reader.read().statuses.get(row.pk))


async def astatus_of(row: WorkspaceProxy) -> ProxyStatus:
    """Return what :func:`status_of` returns."""
    return join(row.as_proxy(), (await reader.aread()).statuses.get(row.pk))


def recent_probes(proxy: WorkspaceProxy | UUID) -> Sequence[RecentProbe]:
    """Return what each probe of the last 24 hours found, the oldest first. Pass the row, or its id.

    These are the results of single probes, also of those that contradict the status. Return an empty list if
    the cache cannot be read, and in a test that is isolated.
    """
    id = proxy if isinstance(proxy, UUID) else proxy.pk
    if isolation.is_isolated() or reader.read().fault:  # do not wait for a cache that has just failed
        return []
    try:
        return read_probes([id])[id]
    except StoreError as error:
        logger.warning("the recent probes cannot be read: %s", error)
        return []


async def arecent_probes(proxy: WorkspaceProxy | UUID) -> Sequence[RecentProbe]:
    """Return what :func:`recent_probes` returns."""
    return await sync_to_async(recent_probes, thread_sensitive=False)(proxy)


def last_trace(proxy: WorkspaceProxy | UUID) -> ProbeTrace | None:
    """Return how the last probe of a proxy went, phase by phase. Pass the row, or its id.

    It belongs to the status whose ``last.checked_at`` it has; the probe of a later status may have left none.
    Return None if there is none, if the cache cannot be read, and in a test that is isolated.
    """
    id = proxy if isinstance(proxy, UUID) else proxy.pk
    if isolation.is_isolated() or reader.read().fault:  # do not wait for a cache that has just failed
        return None
    try:
        return read_trace(id)
    except StoreError as error:
        logger.warning("the trace of the last probe cannot be read: %s", error)
        return None


async def alast_trace(proxy: WorkspaceProxy | UUID) -> ProbeTrace | None:
    """Return what :func:`last_trace` returns."""
    return await sync_to_async(last_trace, thread_sensitive=False)(proxy)


def uptime(proxy: WorkspaceProxy | UUID | None = None) -> Uptimes:
    """Return the uptime of a proxy, or of all together, in each window: ``24h``, ``7d``, ``30d``, ``90d``.

    Query the database, and raise its errors.
    """
    if proxy is None:
        return history.total(uptimes().values())
    id = proxy if isinstance(proxy, UUID) else proxy.pk
    return history.uptimes(reader.read(), [id])[id]


async def auptime(proxy: WorkspaceProxy | UUID | None = None) -> Uptimes:
    """Return what :func:`uptime` returns."""
    return await sync_to_async(uptime)(proxy)


def uptimes() -> Mapping[UUID, Uptimes]:
    """Return the uptime of each proxy by id, also of deleted ones, as :func:`uptime` does."""
    return history.uptimes(reader.read())


async def auptimes() -> Mapping[UUID, Uptimes]:
    """Return what :func:`uptimes` returns."""
    return await sync_to_async(uptimes)()


def outages(proxy: WorkspaceProxy | UUID | None = None) -> OutageQuerySet:
    """Return the outages of a proxy, or of all, the newest first, as a queryset.

    ``outages().open()`` are those that have not ended.
    """
    rows = Outage.objects.primary()
    if proxy is None:
        return rows
    return rows.filter(proxy_uuid=proxy if isinstance(proxy, UUID) else proxy.pk)


async def aacknowledge(outage: Outage | int, by: Any = None, note: str = "") -> bool:
    """Return what :func:`acknowledge` returns."""
    return await sync_to_async(acknowledge)(outage, by, note)


async def aunacknowledge(outage: Outage | int) -> bool:
    """Return what :func:`unacknowledge` returns."""
    return await sync_to_async(unacknowledge)(outage)


def silenced() -> Mapping[UUID, datetime]:
    """Return the time until which each silenced proxy of the snapshot is silenced, by id.

    Read the silences from the database, at most once per ``READ_INTERVAL``. While the database fails, those
    that this process has read last count.
    """
    proxies = (status.proxy for status in reader.read().statuses.values())
    return silences.current().of(proxies, datetime.now(UTC))


async def asilenced() -> Mapping[UUID, datetime]:
    """Return what :func:`silenced` returns."""
    return await sync_to_async(silenced)()


def join(proxy: Proxy, status: ProxyStatus | None) -> ProxyStatus:
    """Return ``status`` with the values of ``proxy``. Ignore a status of another URL."""
    if status is None or status.proxy.url != proxy.url:
        return _unprobed(proxy)
    return status if status.proxy == proxy else replace(status, proxy=proxy)


def _unprobed(proxy: Proxy) -> ProxyStatus:
    """Return ``unknown``, or ``unhealthy`` if the URL of the row is not valid."""
    try:
        if proxy.url:
            parse_proxy_url(proxy.url)
    except ValueError as error:
        report = HealthReport.sanitized([f"failed to parse proxy url: {error}"])
        return ProxyStatus(proxy, "", Status.UNHEALTHY, Reason.INVALID_URL, report)
    return ProxyStatus(proxy, proxy_host="", status=Status.UNKNOWN)
