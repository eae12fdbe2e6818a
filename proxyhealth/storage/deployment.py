"""The identity of this deployment, so that two deployments with the same Redis keys detect each other.

It is the time at which the first migration of this app was applied, as recorded in the database. It differs
between databases. It survives releases, upgrades, new secret keys, new addresses of the database, and
restored backups. Nobody has to set it.
"""

import math
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from django.apps import apps
from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Min

from proxyhealth.utils import rfc3339

HINT = "Give each deployment a KEY_PREFIX of its own in CACHES."

# In seconds:
_TIMEOUT = 1.0  # wait for the database
_RETRY_INTERVAL = 10.0  # pause between queries while the identity is unknown, or differs


def _query(connection: BaseDatabaseWrapper) -> str:
    """Return the identity from the database, or an empty string if no migration is recorded there."""
    recorder = MigrationRecorder(connection)
    if not recorder.has_table():  # a failed query would break the transaction of the caller
        return ""
    rows = recorder.migration_qs.filter(app="proxyhealth")
    applied: datetime | None = rows.aggregate(first=Min("applied"))["first"]
    if applied is None:
        return ""
    return rfc3339(applied if applied.tzinfo else applied.replace(tzinfo=UTC))


class _Identity:
    """The identity as this process last read it, empty if it is unknown."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.value = ""
        self._queried_at = -math.inf

    def read(self) -> str:
        """Query the database, and return the identity, or the last one if the database fails. Never raise."""
        with suppress(Exception):  # a wrong router, or a test without a database
            connection = connections[router.db_for_write(apps.get_model("proxyhealth", "WorkspaceProxy"))]
            try:
                self.value = _query(connection)
            except DatabaseError:
                if not connection.in_atomic_block:  # Django would close one that works
                    connection.close_if_unusable_or_obsolete()
        return self.value

    def read_in_thread(self) -> None:
        """Query the database on another connection. Wait for it, but not for long.

        Reads make no query on the connection of their thread: they may be part of a transaction, or async.
        """
        now = time.monotonic()
        if now - self._queried_at < _RETRY_INTERVAL:
            return
        self._queried_at = now
        thread = threading.Thread(target=self._read_and_close, name="proxyhealth identity", daemon=True)
        thread.start()
        thread.join(_TIMEOUT)

    def _read_and_close(self) -> None:
        try:
            self.read()
        finally:
            connections.close_all()


_identity = _Identity()

read_identity = _identity.read

# Makes this process query the database again, for tests.
forget = _identity.forget


def is_foreign(identity: str) -> bool:
    """Return True if ``identity`` is that of another deployment. False if either is unknown."""
    if identity not in ("", _identity.value):
        _identity.read_in_thread()  # the first comparison, or the database was replaced
    return bool(identity and _identity.value) and identity != _identity.value


def foreign_message(identity: str) -> str:
    """Return the end of a sentence about a snapshot of another deployment, and what to do."""
    return f"it belongs to another deployment, whose database was set up at {identity}. {HINT}"
