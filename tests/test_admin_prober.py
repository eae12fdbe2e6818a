"""The page of the prober itself."""

from __future__ import annotations

import pytest

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.readiness import parts

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/proxyhealth/workspaceproxy/prober/"


@pytest.fixture(autouse=True)
def generous_limit(monkeypatch):
    monkeypatch.setattr(parts, "LIMIT", 10)


def test_page__fresh(admin_client, serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    health.force_update()
    text = admin_client.get(PAGE).content.decode()
    assert "Redis responds, and accepts what rounds write." in text
