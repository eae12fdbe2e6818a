"""The pages of the project: access and contents, without a browser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.test import Client

from project.fleet import FLEET
from tests.support.api import signed_in

pytestmark = pytest.mark.django_db

PICKER = "/regions/"
PAGES = ["/", PICKER, "/login/"]


@pytest.fixture
def user():
    return signed_in()


def test_regions__requires_sign_in(client):
    response = client.get(PICKER)
    assert response.status_code == 302
    assert response["Location"] == "/login/?next=/regions/"


def test_regions__requests_details_only_with_permission(user):
    assert "/api/v2/workspaceproxies" not in user.get(PICKER).text
    assert ' details="/api/v2/workspaceproxies"' in signed_in("view_workspaceproxy").get(PICKER).text


def test_regions__has_a_policy_and_is_not_cached(user):
    response = user.get(PICKER)
    policy = response["Content-Security-Policy"].split("; ")
    assert policy == ["default-src 'self'", "img-src 'self' https: data:", "connect-src 'self' http: https:"]
    assert "no-store" in response["Cache-Control"]


@pytest.mark.parametrize("path", PAGES)
def test_pages__no_inline_scripts_or_styles(user, path):
    text = user.get(path).text
    assert "<style" not in text
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=", text)
    for tag in re.findall(r"<script[^>]*>.*?</script>", text, re.DOTALL):
        assert re.fullmatch(r'<script (?:type="module" )?src="/static/[\w/.-]+"(?: defer)?></script>', tag)


@pytest.mark.parametrize("path", PAGES)
def test_pages__static_files_exist(user, path):
    paths = re.findall(r'(?:href|src)="/static/([^"]+)"', user.get(path).text)
    assert paths
    for static in paths:
        assert finders.find(static), static


def test_fleet__every_member_has_a_flag():
    for member in FLEET:
        path = finders.find(f"project/flags/{member.flag}.svg")
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("path", ["/latency-check", "/latency-check?1"])
def test_latency_check__public_and_not_cached(client, path, django_assert_num_queries):
    with django_assert_num_queries(0):
        response = client.get(path)
    assert response.status_code == 200
    assert response["Cache-Control"] == "no-store"
    assert response["Access-Control-Allow-Origin"] == response["Timing-Allow-Origin"] == "*"
    assert len(response.content) < 10
    assert client.post(path).status_code == 405


def test_sign_in__any_user_and_sign_out_by_post(client):
    User.objects.create_user("ada", password="1815")
    form = {"username": "ada", "password": "1815", "next": PICKER}
    assert client.post("/login/", form)["Location"] == PICKER
    assert client.get(PICKER).status_code == 200
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/")["Location"] == "/"
    assert client.get(PICKER).status_code == 302


def test_sign_in__does_not_redirect_to_other_sites(client):
    User.objects.create_user("ada", password="1815")
    form = {"username": "ada", "password": "1815", "next": "https://elsewhere.example/"}
    assert client.post("/login/", form)["Location"] == "/"


def test_sign_out__requires_the_csrf_token():
    assert Client(enforce_csrf_checks=True).post("/logout/").status_code == 403
