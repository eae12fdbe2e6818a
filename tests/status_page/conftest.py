from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxyhealth.models import WorkspaceProxy


@pytest.fixture
def shown(db: None, configure: Callable[..., None]) -> None:
    """The status page is on."""
    configure(STATUS_PAGE=True)


@pytest.fixture
def paris(db: None) -> Any:
    return WorkspaceProxy.objects.create(
        name="paris", display_name="Paris <b>", icon="/icons/fr.png", url="https://secret.example.com"
    )
