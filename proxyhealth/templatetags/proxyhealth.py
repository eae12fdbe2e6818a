"""``{% load proxyhealth %}``: statuses in the project's own templates."""

from typing import Any
from uuid import UUID

from django import template

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status

register = template.Library()


@register.inclusion_tag("proxyhealth/badge.html")
def proxy_badge(proxy: Any) -> dict[str, Any]:
    """Show the status of ``proxy``: a row, a ``ProxyStatus``, an id or a name. Make no query.

    Values that match no proxy are ``unknown``. The badge marks a stale snapshot, but without the
    reason, because end users see it.
    """
    snapshot = health.snapshot()
    status = _find(proxy, snapshot)
    return {
        "status": status.status if status else Status.UNKNOWN,
        "stale": snapshot.stale,
        "since": status and status.since,
        "raw": status and status.raw,
    }


def _find(proxy: Any, snapshot: Snapshot) -> ProxyStatus | None:
    if isinstance(proxy, ProxyStatus):
        return proxy
    if isinstance(proxy, WorkspaceProxy):
        status = snapshot.statuses.get(proxy.pk)
        # As in health.status_of(), a status of another URL does not count. A deferred URL would need a query.
        loaded = "url" not in proxy.get_deferred_fields()
        return status if status and loaded and status.proxy.url == proxy.url else None
    if isinstance(proxy, UUID):
        return snapshot.statuses.get(proxy)
    if isinstance(proxy, str):
        try:
            status = snapshot.statuses.get(UUID(proxy))
        except ValueError:
            status = None
        return status or snapshot.by_name.get(proxy.lower())
    return None
