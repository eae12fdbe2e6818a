import pytest
from django.contrib.auth.models import Permission, User

from project.startup import DEMO_MODE
from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import take_token

pytestmark = pytest.mark.django_db


@pytest.fixture
def fleet(serve):
    """Run a round of one proxy per status."""
    urls = {"good": serve().url, "sick": serve(report={"errors": ["x"]}).url, "dead": "http://127.0.0.1:1"}
    for name in ("good", "sick", "dead", "new"):
        WorkspaceProxy.objects.create(name=name, url=urls.get(name, ""))
    health.force_update()


COUNTS = ("1 ok", "1 unhealthy", "1 unreachable", "1 unregistered")


def home(client, *permissions, **values):
    """Return the home page as a new user sees it."""
    client.force_login(User.objects.create_user("maria", **values))
    User.objects.get().user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return client.get("/").content.decode()


def test_home_page__links(fleet, client):
    text = client.get("/").content.decode()
    for path in ("/admin/proxyhealth/workspaceproxy/health/", "/api/v2/workspaceproxies", "/metrics"):
        assert f'href="{path}"' in text
    assert "signed in" in text
    assert "Signed in as maria" in home(client)


def test_home_page__counts_need_the_permission(fleet, client):
    for text in (client.get("/").content.decode(), home(client, "change_workspaceproxy", is_staff=True)):
        assert not any(told in text for told in (*COUNTS, "Last round", "Stale.", "proxyhealth-badge"))
    User.objects.all().delete()
    text = home(client, "view_workspaceproxy")
    assert all(told in text for told in (*COUNTS, "Last round"))


def test_home_page__stale_snapshot(client, configure):
    """The reason needs the permission: it may contain the host name of a worker."""
    count_round("offline", "Prober offline: the worker on host-7 has no network", take_token())
    assert "Stale." not in client.get("/").content.decode()
    configure(PUBLIC_REGIONS=True)
    assert "Stale." in client.get("/").content.decode()
    configure(PUBLIC_REGIONS=False)
    text = home(client, is_staff=True)
    assert "Stale." in text
    assert "host-7" not in text
    User.objects.all().delete()
    assert "host-7" in home(client, "view_workspaceproxy")


def test_home_page__shows_credentials_and_faults_in_the_demo_only(client, monkeypatch):
    assert "stop-worker" not in client.get("/").content.decode()
    monkeypatch.setenv(DEMO_MODE, "1")
    text = client.get("/").content.decode()
    assert "the user <code>demo</code> with the password <code>demo</code>" in text
    assert "make stop-worker" in text
