from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from proxyhealth.probing.probe import probe
from tests.probing.asking import (
    INTERNAL,
    Configure,
    ask,
    proxy_at,
    verdict,
)
from tests.support import servers
from tests.support.servers import (
    Server,
    chunked,
    redirect,
    response,
    send,
)

# Own bugs, settings and limits.

OWN_FAULT = "proxyhealth failed to probe this proxy; the worker's log says why"


def test_probe__own_bug_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    result = ask("http://paris.example")
    assert (*verdict(result), result.report.errors) == (*INTERNAL, (OWN_FAULT,))
    assert result.latency is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"probe failed proxy={UUID(int=1)} name=paris"
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"TIMEOUT": "soon"}, {"ADDRESS_DENY": ["nonsense"]}, {"CA_BUNDLE": "/does/not/exist.pem"}],
)
def test_probe__invalid_setting_is_internal(
    options: dict[str, Any], configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(**options)
    result = ask("https://127.0.0.1:1")
    assert verdict(result) == INTERNAL
    assert "ImproperlyConfigured" in caplog.text


def test_probe__invalid_ca_bundle_is_internal(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nonsense")
    configure(CA_BUNDLE=path)
    assert verdict(ask("https://127.0.0.1:1")) == INTERNAL
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_probe__too_many_open_files_is_internal(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with servers.listener() as listening, contextlib.ExitStack() as stack:
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        result = ask(url)
    assert (*verdict(result), result.report.errors) == (*INTERNAL, (OWN_FAULT,))
    assert "Too many open files" in caplog.text


def test_probe__too_many_open_files_is_not_a_dns_error() -> None:
    """Without free file descriptors, the resolver reports an unknown name."""
    with contextlib.ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        result = ask("http://no-such-name.invalid:1")
    assert (*verdict(result), result.report.errors) == (*INTERNAL, (OWN_FAULT,))


def test_probe__never_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("http://me:hunter2@127.0.0.1:1", "http://me:hunter2@[::1", "https://hunter2@127.0.0.1:1/"):
        result = ask(url)
        shown = f"{result.status} {result.reason} {result.report} {result.proxy_host}"
        assert "hunter2" not in shown + caplog.text
    with Server(send(redirect("http://me:hunter2@127.0.0.1:1/"))) as server:
        assert "hunter2" not in repr(ask(server)) + caplog.text


def test_probe__proxies_share_no_state() -> None:
    def script(sock: socket.socket) -> None:
        host = sock.getsockname()[0]
        sock.sendall(
            response(
                json.dumps({"warnings": [host]}),
                f"Set-Cookie: token={host}; Path=/",
                "Connection: keep-alive",
            )
        )

    hosts = [f"127.0.1.{number}" for number in range(1, 61)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(30) as threads:
        servers_of_hosts = [stack.enter_context(Server(script, host=host)) for host in hosts]
        for _ in range(3):
            results = list(threads.map(probe, [proxy_at(server.url) for server in servers_of_hosts]))
            assert [result.report.warnings for result in results] == [(host,) for host in hosts]
        requests = [request for server in servers_of_hosts for request in server.requests]
    assert len(requests) == 3 * len(hosts)
    assert not any(b"cookie" in request.lower() for request in requests)


def test_probe__faults_of_proxies_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = chunked(b"{}").replace(b"\r\nTransfer", b"\r\nContent-Length: 1\r\nTransfer")
    for data in (b"", b"nonsense", response("<html>"), response(status="500 Oops"), both):
        with Server(send(data)) as server:
            ask(server)
    assert caplog.records == []
