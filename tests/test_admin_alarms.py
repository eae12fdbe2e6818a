"""The list of alarms in the admin."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from proxyhealth.models import Alarm
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/alarm/"


@pytest.fixture
def alarm():
    return Alarm.objects.create(
        kind="no_rounds", detail="<No round>", began_at=NOW, ended_at=NOW + timedelta(minutes=5)
    )


def test_list__shows_what_when_and_how_long(admin_client, alarm):
    Alarm.objects.create(kind="redis", began_at=NOW + timedelta(hours=1))
    response = admin_client.get(LIST)
    text = response.content.decode()
    assert [row.kind for row in response.context["cl"].result_list] == ["redis", "no_rounds"]
    assert "no rounds" in text
    assert "&lt;No round&gt;" in text
    assert '<bdi dir="ltr">0:05:00</bdi>' in text
    assert "goes on" in text


def test_list__filters(admin_client, alarm):
    Alarm.objects.create(kind="redis", began_at=NOW)
    for query, kinds in (("kind__exact=redis", ["redis"]), ("ended_at__isempty=0", ["no_rounds"])):
        rows = admin_client.get(f"{LIST}?{query}").context["cl"].result_list
        assert [row.kind for row in rows] == kinds


def test_alarm__cannot_be_changed(admin_client, alarm):
    page = f"{LIST}{alarm.pk}/change/"
    assert admin_client.get(page).status_code == 200
    assert admin_client.post(page, {"kind": "redis"}).status_code == 403
    assert admin_client.post(f"{LIST}add/").status_code == 403
    assert admin_client.post(f"{LIST}{alarm.pk}/delete/").status_code == 403


def test_list__needs_the_permission(alarm):
    user = User.objects.create_user("staff", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(LIST).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_alarm"))
    assert client.get(LIST).status_code == 200
