"""``manage.py proxyhealth watch``: drawn on a terminal, and a line for each change in a pipe."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


class Screen(StringIO):
    """An output that calls the next step whenever its words have been written. The end is Ctrl-C."""

    def __init__(self, *steps: tuple[str, Callable[[], Any]], is_terminal: bool = False) -> None:
        super().__init__()
        self._steps = [*steps]
        self._is_terminal = is_terminal
        self._seen = 0

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._steps and self._steps[0][0] in self.getvalue()[self._seen :]:
            self._seen = len(self.getvalue())
            _, step = self._steps.pop(0)
            step()
        return count


def interrupt():
    signal.raise_signal(signal.SIGINT)


def watch(*steps, is_terminal=False, args=()):
    """Watch until all steps are done, and return the output."""
    screen = Screen(*steps, is_terminal=is_terminal)
    call_command("proxyhealth", "watch", "--interval", "0.2", *args, stdout=screen)  # ends with 0
    return screen.getvalue()


@pytest.fixture
def recover(fleet):
    def change():
        fleet["paris"].report = {"errors": [], "warnings": []}
        health.force_update()

    return change


def test_watch_pipe__one_line_per_change(recover):
    first, second = watch(("2 of 4", recover), ("paris", interrupt)).splitlines()
    assert first.endswith(" UTC 2 of 4 proxies are down, the first for less than a minute")
    assert second.endswith(" UTC paris: unhealthy → ok")


def test_watch_pipe__json_lines(recover):
    output = watch(("2 of 4", recover), ("paris", interrupt), args=["--json"])
    state, change = map(json.loads, output.splitlines())
    assert (state["event"], state["stale"]) == ("state", False)
    assert [change[name] for name in ("event", "name", "before", "after")] == [
        "change",
        "paris",
        "unhealthy",
        "ok",
    ]


def test_watch_pipe__added_and_deleted_proxies(fleet):
    def replace():
        WorkspaceProxy.objects.filter(name="rome").update(deleted=True)
        WorkspaceProxy.objects.create(name="tokyo", url=fleet["oslo"].url)
        health.force_update()

    output = watch(("2 of 4", replace), ("tokyo", interrupt))
    assert "rome: ok → deleted" in output
    assert "tokyo: new → ok" in output


def test_watch_pipe__lost_contact_and_back(fleet, valkey, stopped):
    def restart():
        valkey.start()
        health.force_update()

    output = watch(("2 of 4", stopped), ("No current status", restart), ("2 of 4", interrupt))
    assert "No current status can be read: those below are from less than a minute ago. The cache" in output


def test_watch_pipe__nobody_reads(fleet):
    def close():
        raise BrokenPipeError

    assert watch(("2 of 4", close)).count("\n") == 1


def test_watch_terminal__draws_and_restores(recover, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    output = watch(("kaputt", recover), ("1 of 4 proxies", interrupt), is_terminal=True)
    assert output.count("\x1b[?1049h") == output.count("\x1b[?1049l") == 1
    before, _, after = output.partition("\x1b[?1049l")
    assert "last round" in before
    assert "Ctrl-C ends" in before
    assert "1 of 4 proxies is down" in after
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_watch_terminal__says_how_many_it_cannot_show(fleet, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "8")
    assert "and 2 more proxies" in watch(("more", interrupt), is_terminal=True)


def test_watch_terminal__goes_on_without_the_database(fleet, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    database = _Switch()
    with connection.execute_wrapper(database):
        output = watch(("kaputt", database.fail), ("No contact for", interrupt), is_terminal=True)
    assert "the database is down" in output


class _Switch:
    """A database that fails from some moment on."""

    def __init__(self) -> None:
        self._fails = False

    def fail(self) -> None:
        self._fails = True

    def __call__(self, execute, *args):
        return refuse_queries() if self._fails else execute(*args)


def test_watch__fault_at_the_beginning_ends_it(fleet):
    with pytest.raises(CommandError, match="Did you mean oslo"):
        watch(args=["osl"])
    with pytest.raises(CommandError, match="to 3600 seconds"):
        call_command("proxyhealth", "watch", "--interval", "0")


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_watch_pipe__database_that_has_restarted(fleet):
    def terminate():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        other = connection.copy()
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        other.close()

    steps = (("2 of 4", terminate), ("The database cannot be read", lambda: None), ("2 of 4", interrupt))
    assert watch(*steps).count("\n") == 3
