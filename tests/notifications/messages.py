"""Messages and channels for tests of what is sent."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from proxyhealth.models import Channel
from proxyhealth.notifications.messages import Change, Event, Message
from proxyhealth.report import HealthReport
from proxyhealth.targets import new_secret

AT = datetime(2026, 11, 27, 3, 12, tzinfo=UTC)


def make_change(name: str = "paris", after: str = "unreachable", **values: object) -> Change:
    begin = AT - timedelta(minutes=5)
    return Change(
        **{  # type: ignore[arg-type]
            "transition": 7,
            "proxy_id": UUID(int=1),
            "proxy_name": name,
            "display_name": name.title(),
            "before": "ok" if after != "ok" else "unreachable",
            "after": after,
            "at": AT,
            "since": begin,
            "outage_seconds": 300.0,
            "outage": 3,
            "reason": "timeout" if after != "ok" else "",
            "report": HealthReport.sanitized([f"no answer from {name}"], []),
            **values,
        }
    )


def make_message(*changes: Change, event: Event = Event.STATUS_CHANGED) -> Message:
    changes = changes or (make_change(),)
    return Message(uuid4(), event, "On call", AT, changes, bad=len(changes), total=10)


def webhook(target: str, **values: object) -> Channel:
    return Channel(kind="webhook", name="On call", target=target, **{"secret": new_secret(), **values})


def mailing(target: str = "ops@example.com") -> Channel:
    return Channel(kind="email", name="On call", target=target)


def apprise(target: str) -> Channel:
    return Channel(kind="apprise", name="On call", target=target)
