"""The JSON that webhooks get. docs/notifications.md describes it."""

from typing import Any

from proxyhealth.notifications import wording
from proxyhealth.notifications.links import outage_url
from proxyhealth.notifications.messages import AlarmChange, Change, Message
from proxyhealth.report import HealthReport
from proxyhealth.texts import clean, cut
from proxyhealth.utils import aware, rfc3339

# Characters of all reports of a message. Many servers refuse bodies above 1 MB.
MAX_REPORTS = 100_000
MAX_TEXT = 128


def payload(message: Message, title: str, text: str) -> dict[str, Any]:
    """Return ``message`` as an object for JSON, with ``title`` and ``text`` for people."""
    room = MAX_REPORTS // max(1, len(message.changes))
    return {
        "id": str(message.id),
        "event": message.event.value,
        "channel": clean(message.channel, MAX_TEXT),
        "made_at": rfc3339(aware(message.made_at)),
        "title": title,
        "text": text,
        "changes": [_change(change, room) for change in message.changes],
        "alarms": [_alarm(change) for change in message.alarms],
        "counts": {"bad": message.bad, "total": message.total},
    }


def _change(change: Change, room: int) -> dict[str, Any]:
    return {
        "transition": change.transition,
        "proxy": {
            "id": str(change.proxy_id),
            "name": clean(change.proxy_name, MAX_TEXT),
            "display_name": clean(change.display_name, MAX_TEXT),
        },
        "before": clean(change.before, MAX_TEXT),
        "after": clean(change.after, MAX_TEXT),
        "at": rfc3339(aware(change.at)),
        "since": change.since and rfc3339(aware(change.since)),
        "reason": wording.reason_code(change.reason),
        "report": _report(change.report, room),
        "outage": change.outage,
        "outage_seconds": None if change.outage_seconds is None else max(0.0, change.outage_seconds),
        "reminder": change.number,
        "flaps": change.flaps,
        "url": outage_url(change),
    }


def _alarm(change: AlarmChange) -> dict[str, Any]:
    return {
        "alarm": change.alarm,
        "kind": clean(change.kind, MAX_TEXT),
        "detail": clean(change.detail, 1_000),
        "began_at": rfc3339(aware(change.began_at)),
        "ended_at": change.ended_at and rfc3339(aware(change.ended_at)),
    }


def _report(report: HealthReport, room: int) -> dict[str, list[str]]:
    """Return a report as far as there is room for it, the errors first."""
    cut_lists = []
    for texts in (report.errors, report.warnings):
        kept = []
        for text in texts:
            if room <= 0:
                break
            kept.append(cut(clean(text, 1_000), room))
            room -= len(text)
        cut_lists.append(kept)
    return {"errors": cut_lists[0], "warnings": cut_lists[1]}
