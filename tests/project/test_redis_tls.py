"""Redis with a password and TLS: the cache, the broker, and the result backend of the project."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import closing, suppress

import pytest
import trustme
from celery import Celery

from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import open_cache
from tests.project.test_settings import PRODUCTION
from tests.settings import REDIS_PORT
from tests.support.servers import Server


def pump(source, sink):
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def forward(client):
    """Forward a connection whose TLS ends here, because the Valkey of the tests has none."""
    with socket.create_connection(("127.0.0.1", REDIS_PORT)) as server:
        answers = threading.Thread(target=pump, args=(server, client))
        answers.start()
        pump(client, server)
        answers.join()


@pytest.fixture
def authority(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.fixture
def secure_redis(redis_client, authority):
    """``secure_redis(name)`` is the URL of a Redis with a certificate for this name, and with a user."""
    redis_client.acl_setuser(
        "site", enabled=True, passwords=["+pass word/"], keys=["*"], channels=["*"], categories=["+@all"]
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(forward, tls=context, read=False) as server:
        yield f"rediss://site:pass%20word%2F@127.0.0.1:{server.port}/0"
    redis_client.acl_deluser("site")


def test_redis__with_a_password_and_tls(load, secure_redis, settings, tmp_path):
    secure = load(PRODUCTION, REDIS_URL=secure_redis, REDIS_CA_FILE=tmp_path / "ca.pem")
    settings.CACHES = secure.CACHES
    with open_cache() as cache:
        assert cache.client.acl_whoami() == "site"
    with closing(Celery("secure", set_as_current=False)) as app:
        app.config_from_object(secure, namespace="CELERY")
        with app.connection_for_write() as connection:
            assert connection.default_channel.client.acl_whoami() == "site"
        assert app.backend.client.acl_whoami() == "site"
        app.backend.client.close()


def test_redis__of_another_authority(load, secure_redis, settings, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    settings.CACHES = load(PRODUCTION, REDIS_URL=secure_redis, REDIS_CA_FILE=tmp_path / "other.pem").CACHES
    with pytest.raises(StoreError, match="certificate verify failed") as caught, open_cache() as cache:
        cache.client.ping()
    assert "word" not in str(caught.value)


def test_redis__with_the_certificate_of_another_host(load, secure_redis, settings, tmp_path):
    url = secure_redis.replace("127.0.0.1", "localhost")
    settings.CACHES = load(PRODUCTION, REDIS_URL=url, REDIS_CA_FILE=tmp_path / "ca.pem").CACHES
    with pytest.raises(StoreError, match="Hostname mismatch"), open_cache() as cache:
        cache.client.ping()
