"""Made-up messages. All times are before ``NOW``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from proxyhealth.notifications.messages import AlarmChange, Change, Event, Message

NOW = datetime(2026, 11, 27, 3, 0, 40, tzinfo=UTC)
BASE_URL = "https://control.example.com"
RUNBOOK_URL = "https://docs.example.com/runbook.html"


def ago(**length: float) -> datetime:
    return NOW - timedelta(**length)


def begin(key: int = 1, name: str = "paris", **fields: Any) -> Change:
    """A change from ok to unreachable, 40 s ago."""
    at = fields.get("at", ago(seconds=40))
    values = {
        "transition": key,
        "proxy_id": UUID(int=key),
        "proxy_name": name,
        "display_name": "",
        "before": "ok",
        "after": "unreachable",
        "at": at,
        "since": at,
        "outage": key,
        "outage_seconds": 0.0,
        "reason": "timeout",
    }
    return Change(**{**values, **fields})


def reminder(key: int = 1, name: str = "paris", **fields: Any) -> Change:
    """A reminder of an outage that has lasted three hours."""
    return begin(key, name, **{"at": ago(hours=3), "number": 1, "outage_seconds": 10_800.0, **fields})


def end(key: int = 1, name: str = "paris", **fields: Any) -> Change:
    """The end of an outage of 42 minutes."""
    values = {
        "before": "unreachable",
        "after": "ok",
        "at": ago(seconds=5),
        "since": ago(minutes=42, seconds=5),
        "outage_seconds": 42 * 60.0,
        "reason": "",
    }
    return begin(key, name, **{**values, **fields})


def alarm(kind: str = "no_rounds", ended: bool = False, number: int = 1) -> AlarmChange:
    """An alarm that began four minutes ago."""
    return AlarmChange(number, kind, "No worker responds.", ago(minutes=4), NOW if ended else None)


def message(*changes: Change, alarms: tuple[AlarmChange, ...] = (), **fields: Any) -> Message:
    """A message to the channel on-call, which has eight proxies."""
    bad = sum(change.after in ("unreachable", "unhealthy") for change in changes)
    values = {"id": UUID(int=77), "event": Event.DIGEST, "channel": "on-call", "made_at": NOW}
    return Message(**{**values, "changes": changes, "alarms": alarms, "bad": bad, "total": 8, **fields})


def test_message() -> Message:
    return message(event=Event.TEST)


test_message.__test__ = False  # not a test for pytest
