"""``make stop-worker`` and similar commands, and the end of ``make run`` in unusual ways."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from contextlib import suppress

import pytest

from project.control import send
from project.fleet import FLEET, MAIL_PORT, REDIS_PORT
from tests.support.demo import Demo, copy_checkout, free_ports, processes_in, run_module
from tests.support.proxies import wait_for

NAMES = "Valid names: paris, sao-paulo, sydney, tokyo, mumbai, cape-town"
STARTED = " web    | started (pid "
COMMANDS = "Valid commands: stop-redis, stop-mail, stop-worker, stop-beat, stop-web, stop-proxy NAME=paris"


def control(folder, target, **values):
    """Run a command for the demo of a folder, as make does."""
    return run_module(folder, "project.control", target, **values)


def error_of(folder, target, **values):
    done = control(folder, target, **values)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def run_pid(folder):
    """Return the id of the process of ``make run`` without make."""
    (pid,) = [pid for pid, command in processes_in(folder) if "-m project.run" in command]
    return pid


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        ("stop-proxy", "atlantis", f"NAME=atlantis is not a proxy with a server. {NAMES}"),
        ("stop-proxy", "", f"NAME is missing. {NAMES}"),
        ("start-proxy", "oslo", f"NAME=oslo is not a proxy with a server. {NAMES}"),
        ("stop-wroker", "", f"unknown command. {COMMANDS}"),
    ],
)
def test_control__unknown_name(demo, target, name, message):
    assert error_of(demo.folder, target, NAME=name) == f"make {target}: {message}\n"


def test_control__unknown_target_of_make(demo):
    message, last = demo.make("stop-wroker").stderr.splitlines()
    assert message == f"make stop-wroker: unknown command. {COMMANDS}"
    assert last.startswith("make: *** [Makefile:")


def test_control__demo_of_another_port(demo):
    assert error_of(demo.folder, "stop-beat", PORT=1) == (
        f"make stop-beat: the demo in this directory uses port {demo.port}, not 1. "
        "Omit PORT, or run the command in the directory of the other demo\n"
    )
    message = "make stop-beat: PORT must be a number from 1 to 65535, not 'x'\n"
    assert error_of(demo.folder, "stop-beat", PORT="x") == message


def test_control__no_demo(tmp_path):
    copy_checkout(tmp_path)
    message = "make stop-worker: no demo runs in this directory. Start it with: make run\n"
    assert error_of(tmp_path, "stop-worker") == message
    (tmp_path / "var").mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"/proc/self/cwd/{os.path.relpath(tmp_path)}/var/run.sock")
    assert error_of(tmp_path, "stop-worker") == message, "a demo that was killed leaves its socket"


def test_control__tells_the_port_to_make_prometheus(demo, monkeypatch):
    monkeypatch.chdir(demo.folder)
    assert send("port") == str(demo.port)


def test_control__only_the_owner_can_connect(demo):
    """No page of a site can connect to a Unix socket, and no TCP port controls the demo."""
    path = demo.folder / "var" / "run.sock"
    assert path.is_socket()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    used = {member.port for member in FLEET if member.behaviour not in ("refusing", "unregistered")}
    for offset in {*range(1, 10)} - used - {REDIS_PORT, MAIL_PORT}:
        with socket.socket() as connection:
            assert connection.connect_ex(("127.0.0.1", demo.port + offset)) != 0


def test_control__worker_stops_and_starts(demo):
    assert demo.make("stop-worker").stdout == "worker is stopped\n"
    assert control(demo.folder, "stop-worker").stdout == "worker is already stopped\n"
    assert not [command for _, command in processes_in(demo.folder) if "celery -A project worker" in command]
    assert demo.answers(), "the rest goes on"
    assert control(demo.folder, "start-worker").stdout == "worker is running\n"
    assert control(demo.folder, "start-worker").stdout == "worker is already running\n"


def test_run__finds_free_ports_and_starts_again_after_kill(tmp_path):
    """No process remains of a killed demo, and the other commands find the next one without PORT."""
    folder = copy_checkout(tmp_path)
    with socket.socket() as other:
        with suppress(OSError):  # another program uses the port
            other.bind(("127.0.0.1", 8000))
            other.listen()
        demo = Demo(folder, "")
        try:
            wait_for(lambda: STARTED in demo.log.read_text(), 30)
            os.kill(run_pid(folder), signal.SIGKILL)
            demo.process.wait(10)
            demo = Demo(folder, "")
            wait_for(lambda: STARTED in demo.log.read_text(), 30)
            assert "port 8000 for the web server is not available" in demo.log.read_text()
            assert re.search(r"\. Using port 8\d00\.\n", demo.log.read_text())
            assert control(folder, "stop-beat").stdout == "beat is stopped\n"
            assert sum("-m project.run" in command for _, command in processes_in(folder)) == 1
        finally:
            demo.close()
    assert processes_in(folder) == []


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP", "make killed"])
def test_run__ends_all_processes(tmp_path, end):
    """The signals of a supervisor and of a closed terminal, and accidents."""
    demo = Demo(copy_checkout(tmp_path), free_ports())
    try:
        wait_for(lambda: STARTED in demo.log.read_text(), 30)
        assert len(processes_in(demo.folder)) >= 6
        if end == "SIGTERM":
            os.kill(run_pid(demo.folder), signal.SIGTERM)
        elif end == "SIGHUP":
            os.killpg(demo.process.pid, signal.SIGHUP)
        else:
            demo.process.kill()
        demo.process.wait(20)
        wait_for(lambda: processes_in(demo.folder) == [], 10)
    finally:
        demo.close()
    if end != "SIGHUP":  # SIGHUP ends make before it can print the last line
        assert demo.log.read_text().rstrip().endswith("make run: stopped")
