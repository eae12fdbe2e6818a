"""``make run``: the whole thing on this machine, with a demo fleet, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from honcho.environ import parse_procfile
from honcho.manager import Manager

from project.fleet import BUSY, FLEET, HOST, REDIS_PORT

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = BASE_DIR / "var"

# The demo is to be looked at: what changes shows soon.
DEMO_DEFAULTS = {"DEBUG": "1", "PROXYHEALTH_INTERVAL": "10", "PROXYHEALTH_TIMEOUT": "3"}

USER = "demo"
DEFAULT_PORT = 8000


class CannotRun(Exception):
    """Says in one line why not."""


def main() -> int:
    os.chdir(BASE_DIR)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # into a file, too
    # Until the parts are started there is nothing to clean up. An exception would not do: raised in a
    # callback, while modules are imported, it is only reported, and everything starts all the same.
    signal.signal(signal.SIGINT, _end_at_once)
    # A terminal that is closed stops it as Ctrl-C does.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with _only_one():
            return _run()
    except CannotRun as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1


def _end_at_once(*_: object) -> None:
    os.write(sys.stdout.fileno(), b"make run: stopped\n")
    os._exit(0)


@contextmanager
def _only_one() -> Iterator[None]:
    """Two of them would share a database, and set the URLs of the demo fleet to their own ports in turn."""
    try:
        VAR.mkdir(exist_ok=True)
        lock = (VAR / "run.lock").open("w")
    except OSError as error:
        raise CannotRun(f"cannot write to {VAR}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRun("it is running already, from this folder") from None
        yield


def _run() -> int:
    # An empty variable is as good as none.
    embedded = not os.environ.get("REDIS_URL")
    own_database = bool(os.environ.get("DATABASE_URL"))
    port = _port()
    _require_free_ports(port, embedded)
    _set_environment(port, embedded)
    print("make run: preparing the database", flush=True)
    password = _prepare_database(port, own_database)
    processes = ["fleet", "worker", "beat", "web"]
    if embedded:
        processes.insert(0, "redis")
    print(f"make run: starting {', '.join(processes)}; Ctrl-C stops all of it", flush=True)
    threading.Thread(target=_announce, args=(port, embedded, password), daemon=True).start()
    manager = _Manager()
    commands = parse_procfile((BASE_DIR / "Procfile").read_text()).processes
    for name in processes:
        manager.add_process(name, commands[name])
    manager.loop()
    if manager.returncode in (130, 143):  # SIGINT and SIGTERM
        print("make run: stopped")
        return 0
    print(f"make run: a part ended by itself (exit code {manager.returncode}); see above", file=sys.stderr)
    return 1


class _Manager(Manager):  # type: ignore[misc]
    """honcho's, which fails and leaves its parts behind if it is stopped while it starts them."""

    _stop = False

    def terminate(self) -> None:
        self._stop = True
        self._all_started()

    def _all_started(self) -> bool:
        # The loop asks this at every turn.
        started: bool = super()._all_started()
        if started and self._stop:
            super().terminate()
        return started


def _port() -> int:
    text = os.environ.get("PORT") or str(DEFAULT_PORT)
    if not text.isdecimal() or not 1 <= int(text) <= 65535 - REDIS_PORT:
        raise CannotRun(f"PORT must be a number from 1 to {65535 - REDIS_PORT}, not {text!r}")
    return int(text)


def _require_free_ports(port: int, embedded: bool) -> None:
    wanted = {0: "the web server", **BUSY}
    if embedded:
        wanted[REDIS_PORT] = "the embedded Redis"
    for offset, what in wanted.items():
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((HOST, port + offset))
            except OSError as error:
                raise CannotRun(
                    f"port {port + offset}, for {what}, cannot be used ({error.strerror}); "
                    f"choose others with PORT={port + 100} make run"
                ) from None


def _set_environment(port: int, embedded: bool) -> None:
    for name, value in DEMO_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["WEB_PORT"] = str(port)
    os.environ.setdefault("PROXYHEALTH_PRIMARY_URL", f"http://{HOST}:{port}")
    if embedded:
        os.environ["REDIS_URL"] = f"redis://{HOST}:{port + REDIS_PORT}/0"
    if not os.environ.get("SECRET_KEY"):
        os.environ["SECRET_KEY"] = _secret_key()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"


def _secret_key() -> str:
    """A key of this checkout's own, so that a sign-in outlives a restart."""
    path = VAR / "secret_key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text()


def _prepare_database(port: int, own_database: bool) -> str:
    """Migrate, and make the demo's user and rows; returns the user's password, if it is known."""
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import CommandError, call_command
    from django.db import Error

    try:
        django.setup()
        call_command("migrate", verbosity=0)
        _prepare_fleet(port)
        return _prepare_user(own_database)
    except Error as error:
        raise CannotRun(f"the database cannot be used: {_first_line(error)}") from error
    except (ImproperlyConfigured, CommandError, ValueError, KeyError) as error:
        raise CannotRun(f"the environment cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _prepare_fleet(port: int) -> None:
    from django.templatetags.static import static

    from proxyhealth.models import WorkspaceProxy

    for member in FLEET:
        values = {
            "display_name": member.display_name,
            "icon": static(f"project/flags/{member.flag}.svg"),
            "url": member.url(port),
            "deleted": False,
        }
        # update() and bulk_create() send no signals: there is nobody yet who would hear them.
        if not WorkspaceProxy.objects.filter(name=member.name).update(**values):
            WorkspaceProxy.objects.bulk_create(
                [WorkspaceProxy(name=member.name, version="v2.29.1", **values)]
            )


def _prepare_user(own_database: bool) -> str:
    from django.contrib.auth import get_user_model

    users = get_user_model().objects
    # A password that everybody knows is for the demo's own database only.
    password = secrets.token_urlsafe(12) if own_database else USER
    if users.filter(username=USER).exists():
        return "" if own_database else USER
    users.create_superuser(USER, "", password)
    return password


def _announce(port: int, embedded: bool, password: str) -> None:
    """Say where everything is, once the web server answers."""
    home = f"http://{HOST}:{port}/"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(home, timeout=2).close()
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.2)
    else:
        print(f"make run: the web server does not answer at {home}", file=sys.stderr)
        return
    make = "make" if port == DEFAULT_PORT else f"PORT={port} make"
    sign_in = f"{USER} / {password}" if password else f"{USER}, with the password it was made with"
    lines = [
        "",
        f"  home page     {home}",
        f"  region picker {home}regions/",
        f"  health page   {home}admin/proxyhealth/workspaceproxy/health/",
        f"  JSON          {home}api/v2/workspaceproxies",
        f"  metrics       {home}metrics",
        f"  sign-in       {sign_in}",
        f"  Redis         {os.environ['REDIS_URL']}{' (embedded)' if embedded else ''}",
        f"  rounds        every {os.environ['PROXYHEALTH_INTERVAL']} s",
        f"  demo fleet    {', '.join(f'{m.name} ({m.status})' for m in FLEET)}",
        f"  play          {make} stop-proxy NAME=paris, {make} start-proxy NAME=paris",
        f"  Prometheus    {make} prometheus",
        "",
    ]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
