"""``make prometheus``, and its configuration."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml

from tests.contrib.expressions import ALERTS, RECORDS, expressions
from tests.support.demo import ROOT, copy_checkout, environment, free_ports, run_module
from tests.support.proxies import wait_for

TOKEN = "a\"b'c:#{}"  # needs quoting in YAML


def test_prometheus_yml__is_valid(promtool):
    assert "SUCCESS" in promtool("check", "config", ROOT / "project" / "prometheus.yml")


@dataclass
class Prometheus:
    """A running ``make prometheus``, and a session for its API."""

    process: subprocess.Popen
    log: Path
    base: str
    session: requests.Session

    def get(self, path):
        """Return the data of an API response, or None if Prometheus is not ready."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            response = self.session.get(f"{self.base}/api/v1/{path}", timeout=5)
        except (requests.ConnectionError, requests.Timeout):
            return None
        return response.json()["data"] if response.ok else None

    def scrape_url(self):
        targets = (self.get("targets") or {}).get("activeTargets", ())
        return next((target["scrapeUrl"] for target in targets), None)


@contextmanager
def make_prometheus(folder, port, own_port):
    """Run ``make prometheus``. Kill it in the end if the test has not stopped it."""
    log = folder / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["make", "prometheus"],
            cwd=folder,
            env=environment(PORT=port, PROMETHEUS_PORT=own_port, PROXYHEALTH_METRICS_TOKEN=TOKEN),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with requests.Session() as session:
            session.trust_env = False
            yield Prometheus(process, log, f"http://127.0.0.1:{own_port}", session)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_make_prometheus__loads_rules_and_stops_on_ctrl_c(installed, tmp_path):
    folder = copy_checkout(tmp_path)
    port = free_ports()
    own_port = port + 1
    with make_prometheus(folder, port, own_port) as prometheus:
        groups = wait_for(lambda: prometheus.get("rules"), 30, "Prometheus responds")["groups"]
        assert {rule["name"] for group in groups for rule in group["rules"]} == ALERTS.keys() | RECORDS
        assert wait_for(prometheus.scrape_url, 30, "the target") == f"http://127.0.0.1:{port}/metrics"
        (scrape,) = yaml.safe_load(prometheus.get("status/config")["yaml"])["scrape_configs"]
        assert scrape["authorization"] == {"type": "Bearer", "credentials": "<secret>"}
        # No demo runs, so there is no data, but Prometheus must accept every expression.
        for name, expression in expressions().items():
            url = f"{prometheus.base}/api/v1/query"
            response = prometheus.session.get(url, params={"query": expression}, timeout=20)
            assert response.ok, (name, response.text)
        assert prometheus.session.get(f"{prometheus.base}/", timeout=5).ok, "the printed URL"
        origin = {"Origin": "http://evil.example"}
        response = prometheus.session.get(f"{prometheus.base}/api/v1/rules", headers=origin, timeout=20)
        assert "Access-Control-Allow-Origin" not in response.headers
        os.killpg(prometheus.process.pid, signal.SIGINT)
        prometheus.process.wait(20)
    assert prometheus.log.read_text().startswith(f"make prometheus: {prometheus.base}/ scrapes ")
    assert (folder / "var" / "prometheus").is_dir()
    config = folder / "var" / "prometheus.yml"
    (scrape,) = yaml.safe_load(config.read_text())["scrape_configs"]
    assert scrape["authorization"]["credentials"] == TOKEN
    assert config.stat().st_mode & 0o077 == 0, "others can read the token"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{prometheus.base}/", timeout=5)


def error_of_prometheus(folder, **values):
    """Return the error message of a ``make prometheus`` that cannot start."""
    done = run_module(folder, "project.prometheus", **values)
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr


def test_make_prometheus__not_installed(tmp_path):
    folder = copy_checkout(tmp_path)
    (tmp_path / "empty").mkdir()
    assert error_of_prometheus(folder, PATH=tmp_path / "empty") == (
        "make prometheus: Prometheus is not installed. Install it (Debian: apt-get install prometheus)\n"
    )


def test_make_prometheus__invalid_or_used_port(installed, tmp_path, serve):
    folder = copy_checkout(tmp_path)
    assert error_of_prometheus(folder, PORT="http") == (
        "make prometheus: PORT must be a number from 1 to 65535, not 'http'\n"
    )
    used_port = serve().port
    assert error_of_prometheus(folder, PROMETHEUS_PORT=used_port) == (
        f"make prometheus: port {used_port} for Prometheus is not available (Address already in use). "
        f"Use another port: PROMETHEUS_PORT={used_port + 1} make prometheus\n"
    )
