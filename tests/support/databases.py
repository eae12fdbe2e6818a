"""Databases in addition to the one of the tests, for the thread that opens them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper

from proxyhealth.models import WorkspaceProxy


@contextmanager
def extra_database(alias: str, path: Path) -> Iterator[DatabaseWrapper]:
    """Add a SQLite database as ``alias``. Its file need not exist: each query fails if it cannot be made."""
    options = {**connections["default"].settings_dict, "NAME": path, "ATOMIC_REQUESTS": False, "OPTIONS": {}}
    # Django's test case allows connections of an alias that is not in the settings.
    connections[alias] = DatabaseWrapper(options, alias=alias)
    yield connections[alias]
    connections[alias].close()
    del connections[alias]


@contextmanager
def database_with_table(alias: str, folder: Path) -> Iterator[None]:
    """Add a SQLite database that has the table of the proxies."""
    with extra_database(alias, folder / f"{alias}.sqlite3") as connection:
        with connection.schema_editor() as editor:
            editor.create_model(WorkspaceProxy)
        yield
