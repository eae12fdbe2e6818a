"""The fixture for pytest: ``pytest_plugins = ["proxyhealth.pytest_plugin"]`` in the top conftest.py.

It is no entry point: pytest would rewrite the assertions of the whole app, also for hosts that do not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from proxyhealth.testing import FakeSnapshot


@pytest.fixture
def fake_snapshot() -> Iterator[Callable[..., FakeSnapshot]]:
    """Return a function with the parameters of ``fake_snapshot()``, whose effect ends with the test."""
    from proxyhealth import testing  # it imports models, which need the settings

    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(testing.fake_snapshot(*args, **kwargs))
