"""The password of the demo outside of the demo, and passwords on error pages."""

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate
from django.contrib.auth.models import User
from django.test import Client
from django.urls import path

from project.startup import DEMO_MODE, DEMO_PASSWORD, DEMO_USER, is_set

urlpatterns = [path("", lambda request: 1 / 0)]


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["/login/", "/admin/login/"])
def test_sign_in__with_the_password_of_the_demo(monkeypatch, page, caplog):
    User.objects.create_superuser(DEMO_USER, "", DEMO_PASSWORD)
    form = {"username": DEMO_USER, "password": DEMO_PASSWORD}
    monkeypatch.delenv(DEMO_MODE, raising=False)
    assert Client().post(page, form).status_code == 200, "the form again"
    assert async_to_sync(aauthenticate)(**form) is None
    assert "manage.py changepassword" in caplog.text
    monkeypatch.setenv(DEMO_MODE, "1")
    assert Client().post(page, form).status_code == 302
    assert async_to_sync(aauthenticate)(**form).username == DEMO_USER


@pytest.mark.django_db
def test_sign_in__with_another_password(monkeypatch):
    monkeypatch.delenv(DEMO_MODE, raising=False)
    User.objects.create_user(DEMO_USER, "", "another")
    assert Client().post("/login/", {"username": DEMO_USER, "password": "another"}).status_code == 302


def test_error_page__has_no_password(settings):
    settings.ROOT_URLCONF = __name__
    settings.DEBUG = True
    settings.CELERY_BROKER_URL = ["redis://:hunter2@a/0"]
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://:hunter2@a/0"}}
    page = Client(raise_request_exception=False).get("/").content.decode()
    assert "redis://***@a/0" in page
    assert "hunter2" not in page


def test_external_database__may_be_named_in_a_file(monkeypatch):
    """Otherwise the demo would create its superuser there: the file takes precedence over the variable."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert not is_set("DATABASE_URL")
    monkeypatch.setenv("DATABASE_URL_FILE", "/run/secrets/database")
    assert is_set("DATABASE_URL")
