"""``{% load proxyhealth %}``: statuses in the host project's own templates."""

from __future__ import annotations

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
    """The status of a proxy, which is a row, a ``ProxyStatus``, an id or a name.

    Makes no query, and what is no proxy, or none that is known, is ``unknown``. Says so if the snapshot is
    stale, and nothing of why: users see it.
    """
    snapshot = health.snapshot()
    found = _find(proxy, snapshot)
    return {"status": found.status if found else Status.UNKNOWN, "stale": snapshot.stale}


def _find(proxy: Any, snapshot: Snapshot) -> ProxyStatus | None:
    if isinstance(proxy, ProxyStatus):
        return proxy
    if isinstance(proxy, WorkspaceProxy):
        # As health.status_of() judges, but a column that was not loaded is not fetched: not for a badge.
        found = snapshot.statuses.get(proxy.pk)
        loaded = "url" not in proxy.get_deferred_fields()
        return found if found and loaded and found.proxy.url == proxy.url else None
    if isinstance(proxy, UUID):
        return snapshot.statuses.get(proxy)
    if isinstance(proxy, str):
        try:
            found = snapshot.statuses.get(UUID(proxy))
        except ValueError:
            found = None
        return found or snapshot.by_name.get(proxy.lower())
    return None
