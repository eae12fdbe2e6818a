from __future__ import annotations

import shlex
import subprocess

import pytest

from proxyhealth.overview.curl import curl_command
from proxyhealth.probing.probe import probe
from tests.probing.asking import proxy_at
from tests.support.servers import Server, report, send


def test_curl__sends_the_request_of_the_probe(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Server(send(report())) as server:
        probe(proxy_at(server.url))
        command = shlex.split(curl_command(server.url))
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    first, second = (sorted(request.splitlines()) for request in server.requests)
    assert first == second
    assert b"HTTP/1.1 200" in done.stdout


@pytest.mark.parametrize("url", ["", "ftp://x", "https://user:secret@x", "https://x y"])
def test_curl__without_a_valid_url(url):
    assert curl_command(url) == ""


def test_curl__quotes_for_the_shell(settings, tmp_path):
    bundle = tmp_path / "a b.pem"
    bundle.touch()
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "CA_BUNDLE": str(bundle)}
    arguments = shlex.split(curl_command("https://[::1]:8443"))
    assert arguments[-1] == "https://[::1]:8443/healthz-report"
    assert arguments[arguments.index("--cacert") + 1] == str(bundle)
