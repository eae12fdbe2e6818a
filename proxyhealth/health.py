"""What other code calls: the statuses, the hosts, and a round now.

Nothing here waits for a proxy, except :func:`force_update`; and no read raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from proxyhealth.models import WorkspaceProxy, WorkspaceProxyQuerySet
from proxyhealth.probing import pool as rounds
from proxyhealth.probing.pool import RoundFailed
from proxyhealth.report import Proxy, ProxyStatus, Snapshot, Status
from proxyhealth.rounds import runner as running
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.storage import reader as store

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
    return store.read().statuses


def proxy_hosts(*, healthy_only: bool = False) -> list[str]:
    """``host[:port]`` of every registered proxy, or of the usable ones only.

    All callers have the same list, which cannot be written to: whoever wants to makes a copy.
    """
    snapshot = store.read()
    return snapshot.healthy_hosts if healthy_only else snapshot.hosts


def snapshot() -> Snapshot:
    """The statuses with when they were checked, and whether they are stale and why."""
    return store.read()


def force_update() -> Snapshot:
    """Run one full round now, in this process, and return the snapshot that it led to.

    Takes up to about ``TIMEOUT`` seconds, and waits for a round that is under way to end first; many who
    wait share one round. Raises ``RoundFailed``, and leaves the cache alone, if the proxies cannot be read,
    the cache cannot be used, or another round does not end.
    """
    wait = rounds.time_limit(len(store.read().statuses)) + 30
    if running.run_now(wait) == "running":
        raise RoundFailed(f"another round is still running after {wait:.0f} s")
    return store.read_anew()


def statuses_of(rows: WorkspaceProxyQuerySet, known: Snapshot | None = None) -> list[ProxyStatus]:
    """These rows of the database, by name, with what is known of each: one query.

    ``known`` is the snapshot to read, if it is shown beside them: the next one may be another.

    ``unknown`` is a proxy that no probe has seen yet, or not under the URL that it has now. The
    values are those of the rows, the judgement is that of the snapshot.
    """
    statuses = (known or store.read()).statuses
    return [join(proxy, statuses.get(proxy.id)) for proxy in rounds.values_of(rows)]


def status_of(row: WorkspaceProxy) -> ProxyStatus:
    """The same for one row that is already loaded: no query."""
    return join(rounds.value_of(row), store.read().statuses.get(row.pk))


def join(proxy: Proxy, status: ProxyStatus | None) -> ProxyStatus:
    """The values of a row with the judgement on it, which is ``unknown`` if that was on another URL."""
    if status is None or status.proxy.url != proxy.url:
        return ProxyStatus(proxy, proxy_host="", status=Status.UNKNOWN)
    return status if status.proxy == proxy else replace(status, proxy=proxy)
