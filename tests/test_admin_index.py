"""The panel with the headline, on the index of the admin and on that of the app."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.contrib.auth.models import Permission, User
from django.template import Context
from django.test import Client, RequestFactory

from proxyhealth.admin.proxies import WorkspaceProxyAdmin
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage import reader
from proxyhealth.templatetags.proxyhealth_panel import proxyhealth_panel
from proxyhealth.testing import fake_snapshot

pytestmark = pytest.mark.django_db

PAGES = ["/admin/", "/admin/proxyhealth/"]
PANEL = '<section class="proxyhealth-panel'
LINK = '<a href="/admin/proxyhealth/workspaceproxy/health/">'


def staff(*permissions):
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("path", PAGES)
def test_panel__shows_the_headline(admin_client, path):
    with fake_snapshot(paris="ok", oslo="unreachable"):
        text = text_of(admin_client.get(path))
    assert f"{PANEL} proxyhealth-panel-down" in text
    assert f"{LINK}1 of 2 proxies is down" in text
    assert text.index(PANEL) < text.index('id="content-main"')


@pytest.mark.parametrize("path", PAGES)
def test_panel__only_with_the_permission(path):
    with fake_snapshot(paris="ok"):
        assert PANEL not in text_of(staff("view_outage").get(path))
        User.objects.all().delete()
        assert PANEL in text_of(staff("view_workspaceproxy").get(path))


def test_panel__costs_no_query(admin_client, django_assert_num_queries):
    User.objects.get()
    with fake_snapshot(paris="ok"), django_assert_num_queries(3):  # session, user, recent actions
        admin_client.get("/admin/")


def test_panel__redis_down_in_a_fresh_process(admin_client, stopped):
    WorkspaceProxy.objects.create(name="paris")
    reader.forget()
    stopped()
    text = text_of(admin_client.get("/admin/"))
    assert f"{PANEL} proxyhealth-panel-unknown" in text
    assert "There are no workspace proxies" not in text


def test_panel__an_error_leaves_the_index_as_it_was(admin_client, monkeypatch, caplog):
    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr("proxyhealth.health.snapshot", fail)
    text = text_of(admin_client.get("/admin/"))
    assert PANEL not in text
    assert 'id="content-main"' in text
    assert "the panel of the admin's index cannot be shown" in caplog.text


def test_panel__of_another_admin_site(admin_user):
    site = AdminSite(name="other")
    assert site.index_template is None
    site.register(WorkspaceProxy, WorkspaceProxyAdmin)
    assert site.index_template == admin.site.index_template == "admin/proxyhealth/index.html"
    request = RequestFactory().get("/")
    request.user, request.current_app = admin_user, "other"
    site.unregister(WorkspaceProxy)
    assert proxyhealth_panel(Context({"request": request, **site.each_context(request)})) == {}


def test_panel__keeps_the_template_of_the_host():
    site = AdminSite(name="other")
    site.index_template = "host/index.html"
    site.register(WorkspaceProxy, WorkspaceProxyAdmin)
    assert site.index_template == "host/index.html"
