"""Proxies with a history, as after rounds that the cache has forgotten."""

from datetime import UTC, datetime, timedelta
from itertools import count

from proxyhealth.models import Transition, Watch, WorkspaceProxy

CONFIRMED = "These are the last confirmed statuses, from the database."
LAST_ROUND = datetime.now(UTC).replace(microsecond=7) - timedelta(seconds=20)
EARLIER = LAST_ROUND - timedelta(days=2)

tokens = count(1)


def add(name, *statuses, at=EARLIER, url=None, **values):
    """Add a proxy that had these statuses, one after the other."""
    url = f"https://{name}.example.com" if url is None else url
    row = WorkspaceProxy.objects.create(name=name, url=url)
    for before, after in zip(("unknown", *statuses), statuses, strict=False):
        Transition.objects.create(
            proxy=row,
            proxy_uuid=row.pk,
            proxy_name=name,
            before=before,
            after=after,
            at=at,
            token=next(tokens),
            watched=0,
            **values,
        )
    return row


def end_round(moment=LAST_ROUND):
    since_1970 = moment - datetime.fromtimestamp(0, UTC)
    Watch.objects.update_or_create(
        pk=1, defaults={"token": since_1970 // timedelta(microseconds=1), "watched": 0}
    )


def add_fleet():
    """Add two proxies, and the last full round."""
    end_round()
    report = {"errors": ["kaputt"], "warnings": ["warm"]}
    return {
        "paris": add("paris", "ok"),
        "Oslo": add("Oslo", "ok", "unhealthy", reason="report_errors", report=report),
    }


def statuses_of(snapshot):
    return {status.proxy.name: status.status.value for status in snapshot.statuses.values()}


BOTH = {"Oslo": "unhealthy", "paris": "ok"}
