"""``/livez`` and ``/readyz``: what counts, and what they tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.urls import include, path

from proxyhealth import health
from proxyhealth.readiness import parts
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import reader
from tests.support.api import assert_error
from tests.support.proxies import wait_for

POSTGRES = "django.db.backends.postgresql"
SQLITE = "django.db.backends.sqlite3"

urlpatterns = [path("internal/", include("proxyhealth.readiness.urls"))]


def ask(query=""):
    response = Client().get(f"/readyz{query}")
    return response.status_code, response.json()


def ok_parts(body):
    return {name for name, part in body["parts"].items() if part["ok"]}


def required_parts(body):
    return {name for name, part in body["parts"].items() if part["required"]}


def test_livez__touches_nothing(stopped):
    stopped()
    response = Client().get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response["Cache-Control"].startswith("max-age=0, no-cache, no-store")


@pytest.mark.django_db(transaction=True)
def test_readyz__all_parts(redis_client):
    health.force_update()
    status, body = ask()
    assert status == 200
    age = body["parts"]["snapshot"].pop("age_seconds")
    assert 0 <= age < 30
    assert body == {
        "status": "ok",
        "parts": {
            "database": {"ok": True, "required": True},
            "cache": {"ok": True, "required": False},
            "snapshot": {"ok": True, "required": False},
        },
    }


@pytest.mark.django_db(transaction=True)
def test_readyz__before_the_first_round(redis_client):
    status, body = ask()
    assert (status, body["status"]) == (200, "degraded"), "the admin must open on a new deployment"
    assert body["parts"]["snapshot"] == {
        "ok": False,
        "required": False,
        "age_seconds": None,
        "message": "No full round has ended yet.",
    }


@pytest.mark.django_db(transaction=True)
def test_readyz__stale_snapshot_keeps_the_web_servers(redis_client, configure):
    configure(INTERVAL=0.01, STALE_AFTER=0.02)
    health.force_update()
    wait_for(lambda: health.snapshot().stale)
    status, body = ask()
    assert (status, body["status"], ok_parts(body)) == (200, "degraded", {"database", "cache"})
    assert body["parts"]["snapshot"]["message"] == "It is stale. The health page says why."
    assert ask("?require=snapshot")[0] == 503


@pytest.mark.django_db(transaction=True)
def test_readyz__cache_down_with_a_snapshot(stopped, caplog, valkey):
    caplog.set_level("INFO")
    health.force_update()
    stopped()
    status, body = ask()
    assert (status, ok_parts(body), required_parts(body)) == (200, {"database"}, {"database"})
    assert body["parts"]["snapshot"]["message"] == (
        "It cannot be read from the cache. The last statuses are served."
    )
    assert body["parts"]["cache"]["message"] == "It cannot be used. The log has the error."
    assert ask("?require=cache")[0] == 503
    assert caplog.text.count("not ready part=cache error=") == 1, "once, not with each request"
    assert "refused" in caplog.text
    assert "Service Unavailable" not in caplog.text, "Django would send an email with each request"
    valkey.start()
    # Each result counts for a second.
    wait_for(lambda: ask("?require=cache")[0] == 200)
    wait_for(lambda: "ready again part=cache" in caplog.text)


@pytest.mark.django_db(transaction=True)
def test_readyz__cache_down_without_a_snapshot(stopped, valkey):
    """A new process would serve empty lists: every region would disappear."""
    health.force_update()
    reader.forget()
    stopped()
    status, body = ask()
    assert (status, body["status"]) == (503, "failed")
    assert required_parts(body) == {"database", "snapshot"}
    valkey.start()
    health.force_update()
    parts.forget()
    assert ask()[0] == 200


@pytest.mark.django_db(transaction=True)
def test_readyz__database_down(use_database, tmp_path, redis_client, caplog):
    use_database(ENGINE=POSTGRES, HOST="127.0.0.1", PORT=1, USER="operator", PASSWORD="hunter2", NAME="fleet")
    health.snapshot()
    status, body = ask()
    assert (status, required_parts(body)) == (503, {"database"})
    assert body["parts"]["database"]["message"] == "It cannot be used. The log has the error."
    assert "not ready part=database" in caplog.text
    for secret in ("hunter2", "operator", "127.0.0.1", "fleet"):
        assert secret not in str(body)
    assert "hunter2" not in caplog.text
    assert ask("?require=cache")[0] == 200


@pytest.mark.django_db(transaction=True)
def test_readyz__table_is_missing(use_database, tmp_path, redis_client):
    use_database(ENGINE=SQLITE, NAME=tmp_path / "empty.sqlite3")
    status, body = ask()
    assert (status, body["parts"]["database"]["ok"]) == (503, False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("query", "required"),
    [
        ("?require=cache", {"cache"}),
        ("?require=cache,snapshot", {"cache", "snapshot"}),
        ("?require=cache&require=database", {"cache", "database"}),
    ],
)
def test_readyz__require(query, required, redis_client):
    assert required_parts(ask(query)[1]) == required


@pytest.mark.parametrize("query", ["?require=", "?require=cache,redis"])
def test_readyz__unknown_part(query):
    response = Client().get(f"/readyz{query}")
    assert_error(response, 400, "Bad query.")
    assert response.json()["detail"].endswith("separated by commas: database, cache, snapshot.")


def test_readyz__unknown_parameter():
    response = Client().get("/readyz?exclude=cache")
    assert response.status_code == 400
    assert response.json()["detail"] == "Unknown parameter 'exclude'. Valid parameters: require."


@pytest.mark.parametrize("url", ["/livez", "/readyz"])
def test_readiness__methods(url):
    assert Client().post(url).status_code == 405


@pytest.mark.parametrize("url", ["/livez", "/internal/livez"])
def test_readiness__answers_every_host_over_http(settings, url):
    settings.ROOT_URLCONF = __name__ if "internal" in url else settings.ROOT_URLCONF
    settings.SECURE_SSL_REDIRECT = True
    assert Client().get(url, headers={"host": "10.1.2.3:8000"}).status_code == 200
    assert Client().get("/login/", headers={"host": "10.1.2.3:8000"}).status_code == 400
    assert Client().get("/elsewhere/livez").status_code == 301, "no URL of ours"


def test_readiness__without_the_middleware(settings):
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "readiness" not in name]
    assert Client().get("/livez").status_code == 200
    assert Client().get("/livez", headers={"host": "10.1.2.3:8000"}).status_code == 400


def test_age__without_the_clock_of_the_cache():
    assert Snapshot().age is None
    assert 60 <= Snapshot(checked_at=datetime.now(UTC) - timedelta(seconds=60)).age < 90
