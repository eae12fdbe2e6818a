"""``make run``: run the project and a demo fleet on this machine, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import quote

from project import control
from project.fleet import FLEET, HOST, MAIL_PORT, PORT_PURPOSES, REDIS_PORT, Fleet
from project.mailbox import FOLDER
from project.processes import Processes, Terminal
from project.startup import (
    BASE_DIR,
    DEFAULT_PORT,
    DEMO_MODE,
    DEMO_PASSWORD,
    DEMO_USER,
    VAR,
    WITH_HISTORY,
    CannotStart,
    is_set,
    read_port,
    require_free_port,
)
from proxyhealth.texts import without_passwords

# Short intervals, so that the demo shows changes soon.
DEMO_DEFAULTS = {
    "DEBUG": "1",
    "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
    "HTTPS": "0",
    "PROXYHEALTH_INTERVAL": "10",
    "PROXYHEALTH_TIMEOUT": "3",
    "PROXYHEALTH_GROUP_INTERVAL": "5",
    "PROXYHEALTH_STATUS_PAGE": "1",
}

LOCK_TIMEOUT = 10  # s, longer than the processes of a killed demo need to end


def main() -> int:
    os.chdir(BASE_DIR)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # also if stdout is a file
    # Nothing to clean up until the processes start. KeyboardInterrupt is not reliable here: Python only
    # reports it if it is raised in a callback during an import, and the start would continue.
    signal.signal(signal.SIGINT, _exit_at_once)
    try:
        with _lock_directory() as lock:
            return _run(lock)
    except CannotStart as error:
        print(f"make run: {error}", file=sys.stderr)
    except OSError as error:
        print(f"make run: cannot use {error.filename or VAR}: {error.strerror}", file=sys.stderr)
    return 1


def _exit_at_once(*_: object) -> None:
    os.write(sys.stdout.fileno(), b"make run: stopped\n")
    os._exit(0)


@contextmanager
def _lock_directory() -> Iterator[IO[str]]:
    """Allow one ``make run`` per directory: two would overwrite each other's URLs in the shared database."""
    try:
        VAR.mkdir(exist_ok=True)
        lock = (VAR / "run.lock").open("w")
    except OSError as error:
        raise CannotStart(f"cannot write to {VAR}: {error.strerror}") from error
    with lock:
        end = time.monotonic() + LOCK_TIMEOUT
        while not _locked(lock):
            if time.monotonic() > end or control.is_listening():
                raise CannotStart("already running in this directory. Stop it with Ctrl-C first.")
            time.sleep(0.2)  # the processes of a killed demo are ending
        yield lock


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run(lock: IO[str]) -> int:
    embedded = not is_set("REDIS_URL")
    external_database = is_set("DATABASE_URL")
    port, fleet = _start_fleet(embedded)
    _set_environment(port, embedded, external_database)
    print("make run: preparing the database", flush=True)
    password = _prepare_database(port, external_database)
    # Rounds continue a made-up history only with an empty Redis.
    history_end = _prepare_history() if os.environ.get(DEMO_MODE) == WITH_HISTORY else None
    commands = _commands(embedded)
    print(f"make run: starting {', '.join(commands)}. Press Ctrl-C to stop.", flush=True)
    terminal = Terminal(commands)
    processes = Processes(commands, terminal, lock.fileno())
    control.listen(port, _executor(port, fleet, processes, terminal))
    args = port, embedded, password, terminal, history_end
    threading.Thread(target=_finish_start, args=args, daemon=True).start()
    problem = processes.run()
    if problem:
        print(f"make run: {problem}", file=sys.stderr)
        return 1
    terminal.print("make run: stopped", timeout=2)
    return 0


def _start_fleet(embedded: bool) -> tuple[int, Fleet]:
    """Return the port of the web server, and the running fleet. Without PORT, find free ports."""
    first = read_port("PORT", DEFAULT_PORT, highest=65_535 - MAIL_PORT)
    problem = None
    for port in [first] if is_set("PORT") else range(first, first + 1000, 100):
        fleet = Fleet(port)
        try:
            _require_free_ports(port, embedded)
            fleet.start()
        except CannotStart as error:
            problem = problem or error
            continue
        if problem:
            print(f"make run: {problem}. Using port {port}.")
        return port, fleet
    raise CannotStart(f"{problem}. Use another port, for example: PORT={first + 1000} make run")


def _require_free_ports(port: int, embedded: bool) -> None:
    purposes = {0: "the web server", **PORT_PURPOSES, MAIL_PORT: "the mail server"}
    if embedded:
        purposes[REDIS_PORT] = "the embedded Redis"
    for offset, purpose in purposes.items():
        require_free_port(port + offset, purpose)


def _commands(embedded: bool) -> dict[str, str]:
    """Return the command of each process by its name, from the Procfile."""
    lines = (BASE_DIR / "Procfile").read_text().splitlines()
    commands = {name: command.strip() for name, _, command in (line.partition(":") for line in lines)}
    if not embedded:
        del commands["redis"]
    if FOLDER not in os.environ:
        del commands["mail"]
    return commands


def _executor(port: int, fleet: Fleet, processes: Processes, terminal: Terminal) -> Callable[[str, str], str]:
    """Return the function that executes a command such as ``stop-worker``."""

    def execute(command: str, name: str) -> str:
        if command == "port":
            return str(port)
        verb, _, part = command.partition("-")
        if part == "proxy":
            text = fleet.change(verb, name)
            terminal.print(f"make {command}: {text}", timeout=2)
            return text
        if part in ("redis", "mail") and part not in processes.names:
            server = {"redis": "Redis of REDIS_URL", "mail": "mail server of EMAIL_URL"}[part]
            raise ValueError(f"this demo uses the {server}, and does not control it")
        if part not in processes.names or verb not in ("start", "stop"):
            parts = ", ".join(f"{verb}-{part}" for part in processes.names)
            raise ValueError(f"unknown command. Valid commands: {parts}, {verb}-proxy NAME=paris")
        changed = processes.start(part) if verb == "start" else processes.stop(part)
        state = "running" if verb == "start" else "stopped"
        return f"{part} is {state}" if changed else f"{part} is already {state}"

    return execute


def _set_environment(port: int, embedded: bool, external_database: bool) -> None:
    for name, value in DEMO_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["WEB_PORT"] = str(port)
    for name in ("PROXYHEALTH_PRIMARY_URL", "PROXYHEALTH_BASE_URL"):
        os.environ.setdefault(name, f"http://{HOST}:{port}")
    os.environ.pop(FOLDER, None)
    if not is_set("EMAIL_URL"):
        os.environ["EMAIL_URL"] = f"smtp://{HOST}:{port + MAIL_PORT}"
        os.environ["MAIL_PORT"] = str(port + MAIL_PORT)
        os.environ[FOLDER] = str(VAR / "mailbox")
    if embedded:
        os.environ["REDIS_URL"] = f"redis://{HOST}:{port + REDIS_PORT}/0"
    # The well-known password is safe in a database of the demo alone, and only while the demo runs.
    os.environ.pop(DEMO_MODE, None)
    if not external_database:
        os.environ["DATABASE_URL"] = f"sqlite:///{quote(str(VAR / 'demo.sqlite3'))}"
        os.environ[DEMO_MODE] = WITH_HISTORY if embedded else "1"
    if not os.environ.get("SECRET_KEY"):
        os.environ["SECRET_KEY"] = _secret_key()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"


def _secret_key() -> str:
    """Return a key that is kept in var/, so that users stay signed in after a restart."""
    path = VAR / "secret_key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text()


def _prepare_database(port: int, external_database: bool) -> str:
    """Migrate, and create the demo's rows and user. Return the user's password, or "" if it is unknown."""
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import CommandError, call_command
    from django.db import Error

    try:
        django.setup()
        call_command("migrate", verbosity=0)
        _prepare_fleet(port)
        _prepare_channel()
        return _prepare_user(external_database)
    except Error as error:
        raise CannotStart(f"cannot use the database: {_first_line(error)}") from error
    except (ImproperlyConfigured, CommandError, ValueError, KeyError) as error:
        raise CannotStart(f"invalid environment: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return without_passwords(error).strip().partition("\n")[0]


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
        # update() and bulk_create() send no signals: no worker runs yet that could check the proxies.
        if not WorkspaceProxy.objects.filter(name=member.name).update(**values):
            WorkspaceProxy.objects.bulk_create(
                [
                    WorkspaceProxy(
                        name=member.name, version="v2.29.1", labels={"region": member.region}, **values
                    )
                ]
            )


def _prepare_channel() -> None:
    """Create a channel to the mailbox of the demo if its own database has no channel."""
    from django.utils import timezone

    from proxyhealth.models import Channel

    if FOLDER in os.environ and os.environ.get(DEMO_MODE) and not Channel.objects.exists():
        channel = Channel(name="Demo mailbox", kind=Channel.Kind.EMAIL, target="operator@localhost")
        channel.listens_since = timezone.now()
        Channel.objects.bulk_create([channel])  # as above


def _prepare_user(external_database: bool) -> str:
    from django.contrib.auth import get_user_model

    users = get_user_model().objects
    password = secrets.token_urlsafe(12) if external_database else DEMO_PASSWORD
    if users.filter(username=DEMO_USER).exists():
        return "" if external_database else DEMO_PASSWORD
    users.create_superuser(DEMO_USER, "", password)
    return password


def _prepare_history() -> datetime | None:
    """Make up a day of history for a new demo. Return its end, or None if there is a history."""
    from project.history import make_up_history

    end = datetime.now(UTC)
    if not make_up_history(end):
        return None
    print("make run: made up a day of history", flush=True)
    return end


def _announce(port: int, embedded: bool, password: str, terminal: Terminal) -> None:
    """Print the URLs and the credentials as soon as the web server responds."""
    from django.conf import settings

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
        terminal.print(f"make run: the web server does not respond at {home}")
        return
    sign_in = (
        f"{DEMO_USER} / {password}"
        if password
        else f"{DEMO_USER}, with the password that was printed when the user was created"
    )
    lines = [
        "",
        f"  home page     {home}",
        f"  region picker {home}regions/",
        f"  health page   {home}admin/proxyhealth/workspaceproxy/health/",
        *([f"  mailbox       {home}mailbox/"] if FOLDER in os.environ else []),
        f"  status page   {home}status/",
        f"  JSON          {home}api/v2/workspaceproxies",
        f"  metrics       {home}metrics",
        f"  sign-in       {sign_in}",
        f"  Redis         {without_passwords(settings.REDIS_URL)}{' (embedded)' if embedded else ''}",
        f"  rounds        every {os.environ['PROXYHEALTH_INTERVAL']} s",
        f"  demo fleet    {', '.join(f'{m.name} ({m.status})' for m in FLEET)}",
        "  try it        make stop-proxy NAME=paris, make stop-worker, make stop-beat, make stop-redis,",
        "                make stop-mail, make stop-web, and the same with start",
        "  Prometheus    make prometheus",
        "",
    ]
    terminal.print("\n".join(lines))


def _finish_start(
    port: int, embedded: bool, password: str, terminal: Terminal, history_end: datetime | None
) -> None:
    """Announce the demo. Then make up the recent probes of a new history, for which Redis must run."""
    from project.history import make_up_probes
    from proxyhealth.exceptions import StoreError

    _announce(port, embedded, password, terminal)
    if history_end:
        with suppress(StoreError):  # `make stop-redis` has stopped it
            make_up_probes(history_end)


if __name__ == "__main__":
    os._exit(main())  # at once, although a thread may wait for a paused terminal
