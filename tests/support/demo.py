"""A ``make run`` process in a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import requests

from tests.support.ports import free_port
from tests.support.proxies import wait_for

ROOT = Path(__file__).parents[2]
PORTS = 10  # that `make run` uses, from PORT on

# Without its installation: the tests run in an environment that may have another Django on purpose.
MAKE = ["make", "--old-file", ".venv/.installed"]


def free_ports():
    """Return the first of ``PORTS`` free ports in a row."""
    return free_port(PORTS)


def copy_checkout(to):
    for name in ("Makefile", "Procfile", "manage.py", "requirements.txt"):
        shutil.copy2(ROOT / name, to)
    for name in ("project", "proxyhealth", "templates"):
        # With the bytecode, except the files that another process is writing: compiling takes seconds.
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    (to / ".venv").symlink_to(sys.prefix)  # another test installs a clean clone
    return to


def environment(**values):
    """Return a small environment with these variables, independent of that of the tests."""
    base = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return {**base, **{name: str(value) for name, value in values.items()}}


def run_module(folder, *module, **values):
    """Run a module of the project in ``folder`` to its end, as make does. Return the finished process."""
    return subprocess.run(
        [".venv/bin/python", "-m", *module],
        cwd=folder,
        env=environment(**values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def processes_in(folder):
    """Return the ids and command lines of all processes with a working directory in ``folder``."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(process, "cwd").resolve().is_relative_to(folder):
                command = Path(process, "cmdline").read_bytes().replace(b"\0", b" ").decode()
                processes.append((int(process.name), command))
        except OSError:
            continue
    return [(pid, command) for pid, command in processes if command]


def rows_of(database, query):
    """Return the rows of a query to an SQLite database."""
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        return connection.execute(query).fetchall()


class Demo:
    """A running ``make run``, and a session for requests to it."""

    def __init__(self, folder, port, **values):
        self.folder = folder
        self.port = port
        self.base = f"http://127.0.0.1:{port}"
        self.log = folder / "run.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*MAKE, "run"],
                cwd=folder,
                env=environment(PORT=port, **values),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.session = requests.Session()
        self.session.trust_env = False

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.session.get(self.base, timeout=20).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    def sign_in(self):
        url = f"{self.base}/admin/login/"
        self.session.get(url, timeout=20)
        token = self.session.cookies["csrftoken"]
        form = {"username": "demo", "password": "demo", "csrfmiddlewaretoken": token, "next": "/"}
        assert self.session.post(url, form, timeout=20).url == f"{self.base}/"

    def listing(self):
        answer = self.session.get(f"{self.base}/api/v2/workspaceproxies", timeout=20)
        answer.raise_for_status()
        return answer.json()

    def statuses(self):
        return {
            region["name"]: (region["status"]["status"], region["status"]["reason"])
            for region in self.listing()["regions"]
        }

    def metrics(self):
        return self.session.get(f"{self.base}/metrics", timeout=20).text

    def health_page(self):
        return self.session.get(f"{self.base}/admin/proxyhealth/workspaceproxy/health/", timeout=20).text

    def post(self, path, **form):
        url = f"{self.base}{path}"
        form["csrfmiddlewaretoken"] = self.session.cookies["csrftoken"]
        answer = self.session.post(url, form, timeout=20)
        answer.raise_for_status()
        return answer

    def make(self, target, name=""):
        return subprocess.run(
            [*MAKE, target, f"NAME={name}"],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def shell(self, code):
        """Run Python code in the project, with the demo's database."""
        command = [".venv/bin/python", "manage.py", "shell", "-v0", "-c", code]
        database = f"sqlite:///{self.folder / 'var' / 'demo.sqlite3'}"
        env = environment(DEBUG=1, SECRET_KEY="a key for the shell", DATABASE_URL=database)
        subprocess.run(command, cwd=self.folder, env=env, capture_output=True, timeout=30, check=True)

    def rows(self, query):
        """Return the rows of a query to the demo's database."""
        return rows_of(self.folder / "var" / "demo.sqlite3", query)

    def close(self):
        self.session.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(30)


def start_demo(folder, **values):
    """Start a demo, sign in, and wait for its first round. ``values`` are environment variables for it.

    Until then, the demo serves the last statuses of its made-up history, marked as stale.
    """
    demo = Demo(copy_checkout(folder), free_ports(), **values)
    try:
        wait_for(demo.answers, 60, "make run answers")
        demo.sign_in()
        wait_for(lambda: not demo.listing()["stale"], 60, "the first round")
    except BaseException:
        demo.close()
        raise
    return demo
