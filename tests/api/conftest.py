from __future__ import annotations

import pytest
from django.test import Client

from tests.support.api import signed_in


@pytest.fixture
def viewer(db: None) -> Client:
    """A client whose user may see the details of proxies."""
    return signed_in("view_workspaceproxy")


@pytest.fixture
def operator(db: None) -> Client:
    """A client whose user may also request checks."""
    return signed_in("view_workspaceproxy", "change_workspaceproxy")
