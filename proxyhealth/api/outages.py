"""The JSON of the outages of all proxies."""

from typing import Any

from django.db.models import Q

from proxyhealth.api.listing import Listing
from proxyhealth.api.query import OutagePage
from proxyhealth.api.representation import (
    Representation,
    acknowledgement_json,
    encode,
    known,
    public_name,
    staleness_json,
)
from proxyhealth.models import Outage
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.marks import Acknowledgement
from proxyhealth.statuses import Reason, Status
from proxyhealth.utils import aware, rfc3339

_STATUSES = frozenset(BAD_STATUSES)
_REASONS = frozenset(Reason)

_COLUMNS = (
    *("pk", "proxy_uuid", "proxy_name", "status", "reason", "began_at", "ended_at", "token"),
    *("acknowledged_at", "acknowledged_name", "note"),
)


def represent(page: OutagePage, current: Listing) -> tuple[Representation, bool]:
    """Return the JSON of a page of the outages, and True if it may be out of date."""
    # One more than the page, which shows that there is another page.
    found = list(_select(page).values(*_COLUMNS)[: page.limit + 1])
    rows = found[: page.limit]
    stale_reason = current.parts.stale_reason
    body = {
        "outages": [_outage_json(row) for row in rows],
        "next_cursor": f"{rows[-1]['token']}-{rows[-1]['pk']}" if len(found) > len(rows) else None,
        **staleness_json(stale_reason),
    }
    return Representation(encode(body)), bool(stale_reason)


def _select(page: OutagePage) -> Any:
    rows = Outage.objects.primary().order_by("-token", "-pk")
    if page.open is not None:
        rows = rows.filter(ended_at__isnull=page.open)
    if page.before is not None:
        token, pk = page.before
        # Those of one round have the same token. The first condition is for the index.
        rows = rows.filter(Q(token__lt=token) | Q(pk__lt=pk), token__lte=token)
    return rows


def _outage_json(row: dict[str, Any]) -> dict[str, Any]:
    began_at, ended_at, acknowledged_at = (
        row[name] and aware(row[name]) for name in ("began_at", "ended_at", "acknowledged_at")
    )
    acknowledgement = acknowledged_at and Acknowledgement(
        row["acknowledged_name"], acknowledged_at, row["note"]
    )
    return {
        "outage": row["pk"],
        "proxy_id": str(row["proxy_uuid"]),
        "name": public_name(row["proxy_name"], row["proxy_uuid"]),
        "status": known(row["status"], _STATUSES, Status.UNREACHABLE),
        "reason": known(row["reason"], _REASONS, Reason.NONE),
        "began_at": rfc3339(began_at),
        "ended_at": ended_at and rfc3339(ended_at),
        "seconds": ended_at and round((ended_at - began_at).total_seconds(), 3),
        "acknowledged": acknowledgement and acknowledgement_json(acknowledgement),
    }
