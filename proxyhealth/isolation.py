"""The isolation of tests: in a test, a substitute replaces the cache and the broker."""

import sys
import threading
from collections.abc import Iterable
from typing import Protocol
from uuid import UUID

from proxyhealth.snapshot import Snapshot
from proxyhealth.utils import PerProcess

NO_CACHE = "tests do not use the cache; proxyhealth.testing.fake_snapshot() gives them statuses"


class Substitute(Protocol):
    """The stand-in of a test for the cache and the broker: it has a snapshot, and takes requests."""

    @property
    def snapshot(self) -> Snapshot: ...

    def request_check(self, ids: Iterable[UUID] | None) -> None: ...

    def force_update(self) -> Snapshot: ...


# The substitutes that tests have entered, the innermost last. None stands for the real cache and broker. Only
# whole tuples are assigned, because other threads read them.
_entered: tuple[Substitute | None, ...] = ()
_lock = PerProcess(threading.Lock)


def enter(substitute: Substitute | None) -> None:
    """Make this process use ``substitute``, or the real cache and broker."""
    global _entered
    with _lock.value:
        _entered = (*_entered, substitute)


def leave(substitute: Substitute | None) -> None:
    """Undo the last :func:`enter` of this substitute, even if another one was entered after it."""
    global _entered
    with _lock.value:
        index = max(i for i, each in enumerate(_entered) if each is substitute)
        _entered = (*_entered[:index], *_entered[index + 1 :])


def current() -> Substitute | None:
    """Return the substitute that was entered last, or None."""
    entered = _entered
    return entered[-1] if entered else None


def is_isolated() -> bool:
    """Return True if this process must not use the cache and the broker."""
    entered = _entered
    return entered[-1] is not None if entered else in_test_environment()


def is_decided() -> bool:
    """Return True if this process is isolated, or has chosen to use the real cache and broker."""
    return bool(_entered) or in_test_environment()


def in_test_environment() -> bool:
    """Return True between ``setup_test_environment()`` and ``teardown_test_environment()`` of Django.

    The test runner of Django and pytest-django call them. Django then also keeps the emails of the process.
    """
    utils = sys.modules.get("django.test.utils")
    return hasattr(getattr(utils, "_TestState", None), "saved_data")
