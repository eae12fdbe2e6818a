from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests import servers
from tests.probe.asking import (
    INTERNAL,
    Configure,
    ask,
    verdict,
)
from tests.servers import (
    Server,
    chunked,
    response,
    send,
)

# Our own faults.

OWN_FAULT = "proxyhealth failed to probe this proxy; the worker's log says why"


def test_probe__bug_of_ours_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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
def test_probe__wrong_setting_is_ours(
    options: dict[str, Any], configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(**options)
    result = ask("https://127.0.0.1:1")
    assert verdict(result) == INTERNAL
    assert "ImproperlyConfigured" in caplog.text


def test_probe__ca_bundle_that_is_no_pem_is_ours(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nonsense")
    configure(CA_BUNDLE=path)
    assert verdict(ask("https://127.0.0.1:1")) == INTERNAL
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_probe__too_many_open_files_is_ours(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
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


def test_probe__says_nothing_in_the_log_about_what_proxies_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = chunked(b"{}").replace(b"\r\nTransfer", b"\r\nContent-Length: 1\r\nTransfer")
    for data in (b"", b"nonsense", response("<html>"), response(status="500 Oops"), both):
        with Server(send(data)) as server:
            ask(server)
    assert caplog.records == []
