import pytest
from django.contrib.auth.models import User

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy

pytestmark = pytest.mark.django_db


@pytest.fixture
def fleet(serve):
    """Run a round of one proxy per status."""
    urls = {"good": serve().url, "sick": serve(report={"errors": ["x"]}).url, "dead": "http://127.0.0.1:1"}
    for name in ("good", "sick", "dead", "new"):
        WorkspaceProxy.objects.create(name=name, url=urls.get(name, ""))
    health.force_update()


def test_home_page__links(fleet, client):
    text = client.get("/").content.decode()
    for path in ("/admin/proxyhealth/workspaceproxy/health/", "/api/v2/workspaceproxies", "/metrics"):
        assert f'href="{path}"' in text
    for count in ("1 ok", "1 unhealthy", "1 unreachable", "1 unregistered"):
        assert count in text
    assert "Stale." not in text
    assert "signed in" in text
    client.force_login(User.objects.create_user("maria"))
    assert "Signed in as maria" in client.get("/").content.decode()


def test_home_page__stale_snapshot(client):
    text = client.get("/").content.decode()
    assert "Stale." in text
    assert "No round has ended yet." not in text, "the reason may contain host names"
    client.force_login(User.objects.create_user("operator", is_staff=True))
    assert "No round has ended yet." in client.get("/").content.decode()
