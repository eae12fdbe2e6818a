"""What other code calls: the statuses, the hosts, and a round now.

Nothing here waits for a proxy, except :func:`force_update`; and no read raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.probing import pool
from proxyhealth.rounds import runner
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.lease import RoundOutcome

__all__ = [
    "RoundFailed",
    "force_update",
    "health_status",
    "proxy_hosts",
    "request_check",
    "snapshot",
    "status_of",
    "statuses_of",
]


def health_status() -> Mapping[UUID, ProxyStatus]:
    """The last known status of every proxy, by id; empty when nothing is known."""
    return reader.read().statuses


def proxy_hosts(*, healthy_only: bool = False) -> list[str]:
    """``host[:port]`` of every registered proxy, or of the usable ones only.

    All callers have the same list, which cannot be written to: whoever wants to makes a copy.
    """
    snapshot = reader.read()
    return snapshot.healthy_hosts if healthy_only else snapshot.hosts


def snapshot() -> Snapshot:
    """The statuses with when they were checked, and whether they are stale and why."""
    return reader.read()


def force_update() -> Snapshot:
    """Run one full round now, in this process, and return the snapshot that it led to.

    Takes up to about ``TIMEOUT`` seconds, and waits for a round that is under way to end first; many who
    wait share one round. Raises ``RoundFailed``, and leaves the cache alone, if the proxies cannot be read,
    the cache cannot be used, or another round does not end.
    """
    wait = pool.time_limit(len(reader.read().statuses)) + 30
    if runner.run_now(wait) is RoundOutcome.BUSY:
        raise RoundFailed(f"another round is still running after {wait:.0f} s")
    return reader.read_anew()


def statuses_of(rows: WorkspaceProxyQuerySet, known: Snapshot | None = None) -> list[ProxyStatus]:
    """These rows of the database, by name, with what is known of each: one query.

    ``known`` is the snapshot to read, if it is shown beside them: the next one may be another.

    ``unknown`` is a proxy that no probe has seen yet, or not under the URL that it has now. The
    values are those of the rows, the judgement is that of the snapshot.
    """
    statuses = (known or reader.read()).statuses
    return [join(proxy, statuses.get(proxy.id)) for proxy in rows.as_proxies()]


def status_of(row: WorkspaceProxy) -> ProxyStatus:
    """The same for one row that is already loaded: no query."""
    return join(row.as_proxy(), reader.read().statuses.get(row.pk))


def join(proxy: Proxy, status: ProxyStatus | None) -> ProxyStatus:
    """The values of a row with the judgement on it, which is ``unknown`` if that was on another URL."""
    if status is None or status.proxy.url != proxy.url:
        return ProxyStatus(proxy, proxy_host="", status=Status.UNKNOWN)
    return status if status.proxy == proxy else replace(status, proxy=proxy)
