"""The JSON of the history of a proxy: its transitions, its uptime, and its last probes."""

from typing import Any
from uuid import UUID

from proxyhealth import isolation
from proxyhealth.api.listing import Listing
from proxyhealth.api.query import HistoryPage
from proxyhealth.api.representation import (
    Representation,
    encode,
    known,
    milliseconds,
    public_name,
    staleness_json,
)
from proxyhealth.exceptions import StoreError
from proxyhealth.history import uptime
from proxyhealth.models import Transition
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import probes
from proxyhealth.utils import aware, rfc3339

_STATUSES = frozenset((*Status, Transition.REMOVED))
_REASONS = frozenset(Reason)

_COLUMNS = ("pk", "proxy_uuid", "proxy_name", "before", "after", "at", "reason", "report", "token")


def id_of_past_proxy(text: str) -> UUID | None:
    """Return the id ``text`` if it is that of a proxy with a history, whose row may be gone, else None."""
    try:
        id = UUID(text)
    except ValueError:
        return None
    return id if Transition.objects.primary().filter(proxy_uuid=id).exists() else None


def represent(id: UUID, page: HistoryPage, current: Listing) -> tuple[Representation, bool]:
    """Return the JSON of a page of the history, and True if it may be out of date."""
    # One more than the page, which shows that there is another page.
    found = _read_transitions(id, page)
    rows = found[: page.limit]
    snapshot = current.parts.snapshot
    recent, fault = _read_recent(id, snapshot)
    stale_reason = current.parts.stale_reason or fault
    body = {
        "transitions": [_transition_json(row) for row in rows],
        "uptime": {name: _share(ratio) for name, ratio in uptime.uptime_of(id, snapshot).items()},
        "recent": recent,
        "next_cursor": str(rows[-1]["token"]) if len(found) > len(rows) else None,
        **staleness_json(stale_reason),
    }
    # Without a Last-Modified: rows are written some time after their token.
    return Representation(encode(body)), bool(stale_reason)


def _read_transitions(id: UUID, page: HistoryPage) -> list[dict[str, Any]]:
    rows = Transition.objects.primary().filter(proxy_uuid=id).order_by("-token")
    if page.before is not None:
        rows = rows.filter(token__lt=page.before)
    return list(rows.values(*_COLUMNS)[: page.limit + 1])


def _transition_json(row: dict[str, Any]) -> dict[str, Any]:
    report = row["report"] if isinstance(row["report"], dict) else {}
    return {
        "transition": row["pk"],
        "name": public_name(row["proxy_name"], row["proxy_uuid"]),
        "before": known(row["before"], _STATUSES, Status.UNKNOWN),
        "after": known(row["after"], _STATUSES, Status.UNKNOWN),
        "at": rfc3339(aware(row["at"])),
        "reason": known(row["reason"], _REASONS, Reason.NONE),
        "report": {"errors": report.get("errors", ()), "warnings": report.get("warnings", ())},
    }


def _share(ratio: float | None) -> float | None:
    """Return a ratio with six digits, so that few requests change it. Only 1 itself becomes 1."""
    return ratio if ratio in (None, 1) else min(round(ratio, 6), 0.999999)


def _read_recent(id: UUID, snapshot: Snapshot) -> tuple[list[dict[str, Any]], str]:
    """Return the JSON of the last probes, the newest first, and the reason why they cannot be read."""
    if snapshot.fault or isolation.is_isolated():
        return [], ""  # a cache that has just failed may hang, and tests have none
    try:
        found = probes.read_probes([id])[id]
    except StoreError as error:
        return [], f"The recent probes cannot be read ({str(error).rstrip('.')})."
    return [_probe_json(probe) for probe in reversed(found)], ""


def _probe_json(probe: probes.RecentProbe) -> dict[str, Any]:
    return {
        "at": rfc3339(probe.at),
        "status": probe.status,
        "reason": probe.reason,
        "latency_ms": milliseconds(probe.latency),
    }
