"""The copies that a process keeps, in a child that was forked while a thread held one of their locks."""

import pytest

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
from proxyhealth.api import inventory, listing

inventory.read = lambda *args, **options: inventory.Inventory((), None)
""",
        "listing._listings.value._refresh_lock.acquire()",
        "assert listing.current().stale",
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


@pytest.mark.parametrize(("prepare", "hold", "child"), CASES.values(), ids=CASES)
def test_fork__while_a_thread_holds_the_lock(prepare, hold, child):
    run_in_fork(prepare, hold=hold, child=child, REDIS_URL="redis://127.0.0.1:1/0")
