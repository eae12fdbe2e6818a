"""Proxies, statuses and rounds for tests of the storage, and a database that is down."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from django.db import OperationalError

from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.merge import Round
from proxyhealth.storage.outbox import read_entries
from proxyhealth.trace import Phase, ProbeTrace, RequestTrace

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)

# The course of a probe, and the trace that is read.
COURSE = {
    "checked_at": NOW,
    "status": Status.UNREACHABLE,
    "reason": Reason.TIMEOUT,
    "error": "request to proxy failed: no answer within 5 s",
    "requests": [
        {
            "url": "https://paris.example.com/healthz-report",
            "marks": [
                *("look_up", 7_000_000, ""),
                *("connect", 7_001_000, "192.0.2.1"),
                *("connect", 7_251_000, "192.0.2.2"),
                *("tls", 7_253_000, ""),
                *("first_byte", 7_263_000, ""),
                *("", 11_963_000, ""),
            ],
            "sent": "GET /healthz-report HTTP/1.1\r\nHost: paris.example.com\r\n\r\n",
            "status_code": 0,
            "tls_version": "TLSv1.3",
            "tls_expires_at": NOW + timedelta(days=30),
        }
    ],
}
TRACE = ProbeTrace(
    NOW,
    Status.UNREACHABLE,
    Reason.TIMEOUT,
    "request to proxy failed: no answer within 5 s",
    (
        RequestTrace(
            "https://paris.example.com/healthz-report",
            (
                Phase("look_up", 0.001),
                Phase("connect", 0.25, "192.0.2.1"),
                Phase("connect", 0.002, "192.0.2.2"),
                Phase("tls", 0.01),
                Phase("first_byte", 4.7),
            ),
            "GET /healthz-report HTTP/1.1\nHost: paris.example.com",
            tls_version="TLSv1.3",
            tls_expires_at=NOW + timedelta(days=30),
        ),
    ),
)


def make_proxy(name="paris", id=None):
    return Proxy(
        id=id or uuid4(),
        name=name,
        display_name="",
        icon="",
        url=f"https://{name}.example.com",
        wildcard_hostname="",
        version="",
        deleted=False,
        created_at=NOW,
        updated_at=NOW,
    )


def make_status(proxy, status=Status.OK, **values):
    return ProxyStatus(proxy, proxy_host=f"{proxy.name}.example.com", status=status, checked_at=NOW, **values)


def judgements(snapshot):
    """Return the statuses of a snapshot without the times since which they are so."""
    return [replace(status, since=None) for status in snapshot.statuses.values()]


def a_round(seconds=0.3):
    return Round(datetime.now(UTC), seconds)


def outbox(kind="change"):
    """Return the entries of a kind in the outbox, the oldest first."""
    return [entry for entry in map(json.loads, read_entries(100_000)) if entry["kind"] == kind]


def changes():
    """Return the changes in the outbox, as (name, before, after)."""
    return [(entry["name"], entry["before"], entry["after"]) for entry in outbox()]


def refuse_queries(*args):
    """Fail each query; for ``connection.execute_wrapper()``."""
    raise OperationalError("the database is down")
