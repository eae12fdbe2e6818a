"""Proxies, statuses and rounds for tests of the storage, and a database that is down."""

from datetime import UTC, datetime
from uuid import uuid4

from django.db import OperationalError

from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage.document import Round

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


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


def a_round(seconds=0.3):
    return Round(datetime.now(UTC), seconds)


def refuse_queries(*args):
    """Fail each query; for ``connection.execute_wrapper()``."""
    raise OperationalError("the database is down")
