from __future__ import annotations

import pytest
from django.db import connections

from proxyhealth.readiness import parts


@pytest.fixture(autouse=True)
def generous_limit(monkeypatch):
    """A busy machine must not fail a test that is not about time. Tests about time set less."""
    monkeypatch.setattr(parts, "LIMIT", 10)


@pytest.fixture
def use_database(settings):
    """``use_database(HOST=...)`` sends the queries of all models to another database, in every thread."""

    class Router:
        def db_for_read(self, model, **hints):
            return "other"

        db_for_write = db_for_read

    def change(**values):
        connections.settings["other"] = {**connections.settings["default"], "OPTIONS": {}, **values}
        settings.DATABASE_ROUTERS = [Router()]
        parts.forget()

    yield change
    connections.settings.pop("other", None)
