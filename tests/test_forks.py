"""Processes that are forked while another thread holds a lock, as some servers do it."""

import os
import subprocess
import sys

import pytest

PRELUDE = """
import os, signal, threading, django
django.setup()

def fork_while_locked(lock, in_child):
    locked, end = threading.Event(), threading.Event()

    def hold():
        with lock:
            locked.set()
            end.wait()

    threading.Thread(target=hold).start()
    locked.wait()
    if not (pid := os.fork()):
        signal.alarm(20)  # ends the child if it waits forever
        in_child()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end.set()
    raise SystemExit(status)
"""

MIDDLEWARE = """
from proxyhealth import health, middleware
from tests.support.csp import OURS, extended_policy, status_of_host

status = status_of_host("paris.example.com")
statuses = {status.proxy.id: status}
health.health_status = lambda: statuses

def in_child():
    assert extended_policy("connect-src 'self'") == f"connect-src 'self' {OURS}"

fork_while_locked(middleware._sources.value._lock, in_child)
"""

DESCRIPTION = """
from django.test import RequestFactory
from proxyhealth.api import views

def get():
    return views.openapi(RequestFactory().get("/", headers={"Accept-Encoding": "gzip"}))

def in_child():
    assert get().status_code == 200

fork_while_locked(views._descriptions.value("")._lock, in_child)
"""


SNAPSHOT = """
from proxyhealth.storage import reader

def in_child():
    assert "The cache cannot be read" in reader.read().fault

fork_while_locked(reader._reader.value._refresh_lock, in_child)
"""

INVENTORY = """
from django.db import DatabaseError
from proxyhealth.api import inventory

def in_child():
    try:
        inventory.read()
    except DatabaseError:
        pass  # there is no table; what counts is that it does not hang

fork_while_locked(inventory._inventory.value._refresh_lock, in_child)
"""

LISTING = """
from proxyhealth.api import inventory, listing

inventory.read = lambda *args, **options: inventory.Inventory((), None)

def in_child():
    assert listing.current().stale

fork_while_locked(listing._listings.value._refresh_lock, in_child)
"""

LAZY_PROPERTY = """
import contextlib
from proxyhealth.snapshot import Snapshot
from proxyhealth.utils import LazyProperty

class Slow:
    @LazyProperty
    def value(self):
        return computing()

@contextlib.contextmanager
def computing_a_value():
    global computing
    started, end = threading.Event(), threading.Event()
    computing = lambda: (started.set(), end.wait())
    threading.Thread(target=lambda: Slow().value, daemon=True).start()
    started.wait()
    yield

def in_child():
    global computing
    computing = lambda: 1
    assert Slow().value == 1
    assert Snapshot().hosts == []

fork_while_locked(computing_a_value(), in_child)
"""

CASES = {
    "middleware": MIDDLEWARE,
    "description": DESCRIPTION,
    "snapshot": SNAPSHOT,
    "inventory": INVENTORY,
    "listing": LISTING,
    "lazy property": LAZY_PROPERTY,
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_fork__while_a_thread_holds_the_lock(code):
    # Newer Pythons warn about forks of processes with threads.
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + code]
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
