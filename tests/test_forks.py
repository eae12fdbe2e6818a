"""The copies that a process keeps, in a child that was forked while a thread held one of their locks."""

import pkgutil
import queue
import threading
import types
from importlib import import_module

import proxyhealth
from proxyhealth import shared_copy
from proxyhealth.utils import PerProcess
from tests.support.forks import run_in_fork

SLOW_PROPERTY = """
from proxyhealth.snapshot import Snapshot
from proxyhealth.utils import LazyProperty

class Slow:
    @LazyProperty
    def value(self):
        return compute()

computing = threading.Event()

def compute():
    computing.set()
    time.sleep(60)
"""

# Imports and helpers, what a thread does before the fork, and what works in the child.
CASES = {
    "middleware": (
        """
from proxyhealth import health, middleware
from tests.support.csp import OURS, extended_policy, status_of_host

status = status_of_host("paris.example.com")
statuses = {status.proxy.id: status}
health.health_status = lambda: statuses
""",
        "middleware._sources.value._lock.acquire()",
        """assert extended_policy("connect-src 'self'") == f"connect-src 'self' {OURS}" """,
    ),
    "description": (
        """
from django.test import RequestFactory
from proxyhealth.api import views
""",
        """views._descriptions.value("")._lock.acquire()""",
        """
request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
assert views.openapi(request).status_code == 200
""",
    ),
    "snapshot": (
        "from proxyhealth.storage import reader\n",
        "reader._reader.value._refresh_lock.acquire()",
        """assert "The cache cannot be read" in reader.read().fault""",
    ),
    "inventory": (
        """
from django.db import DatabaseError
from proxyhealth.api import inventory
""",
        "inventory._inventory.value._refresh_lock.acquire()",
        """
try:
    inventory.read()
except DatabaseError:
    pass  # there is no table; what counts is that it does not hang
""",
    ),
    "listing": (
        """
from proxyhealth.api import listing
""",
        "listing._listings.value._refresh_lock.acquire()",
        """
inventory.read = lambda *args, **options: inventory.Inventory((), None)
assert listing.current().stale
""",
    ),
    "client": (
        """
from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import open_cache, run_script
with open_cache() as cache:
    connections = cache.client.connection_pool
""",
        "connections._fork_lock.acquire(); connections._lock.acquire()",
        """
try:
    run_script("return 1", [])
except StoreError as error:  # redis-py raises another one after five seconds
    assert "connecting to" in str(error), repr(error)
""",
    ),
    "lazy property": (
        SLOW_PROPERTY,
        "threading.Thread(target=lambda: Slow().value, daemon=True).start(); assert computing.wait(10)",
        """
compute = lambda: 1
assert Slow().value == 1
assert Snapshot().hosts == []
""",
    ),
}


def test_fork__while_a_thread_holds_the_locks():
    prepare, holds, uses = zip(*CASES.values(), strict=True)
    # In one process, because each start takes a second. Its output names the use that hangs or fails.
    named = (f"print({name!r}, file=sys.stderr)\n{use}" for name, use in zip(CASES, uses, strict=True))
    run_in_fork(
        "".join(prepare), hold="\n".join(holds), child="\n".join(named), REDIS_URL="redis://127.0.0.1:1/0"
    )


LOCKS = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Semaphore,
    threading.Event,
    threading.Thread,
    queue.Queue,
    queue.SimpleQueue,
)


def locks_of(value, depth=3):
    """Return the locks in an object and its attributes, except those that a fork replaces."""
    if isinstance(value, LOCKS):
        return [value]
    if depth == 0 or isinstance(value, (PerProcess, type, types.ModuleType)):
        return []
    if not type(value).__module__.startswith("proxyhealth"):
        return []
    return [lock for part in getattr(value, "__dict__", {}).values() for lock in locks_of(part, depth - 1)]


def test_modules__hold_locks_only_per_process():
    names = [info.name for info in pkgutil.walk_packages(proxyhealth.__path__, "proxyhealth.")]
    held = [
        f"{name}.{key}"
        for name in names
        for key, value in vars(import_module(name)).items()
        if locks_of(value)
    ]
    assert held == []
    assert locks_of(shared_copy.SharedCopy()), "the test finds locks"
