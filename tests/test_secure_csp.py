"""The Content Security Policy of Django 6 and newer. ``conftest.py`` leaves this file out on Django 5."""

import asyncio

import pytest
from django.conf import settings as django_settings
from django.http import HttpResponse
from django.middleware.csp import get_nonce
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.csp import CSP
from django.views.decorators.csp import csp_override

from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.values import a_round, make_proxy, make_status

OURS = "https://paris.example.com wss://paris.example.com"


def view(request):
    return HttpResponse(get_nonce(request))


async def async_view(request):
    return view(request)


@csp_override({"connect-src": [CSP.NONE]})
def strict_view(request):
    return HttpResponse("x")


@csp_override({})
def free_view(request):
    return HttpResponse("x")


urlpatterns = [
    path("sync", view),
    path("async", async_view),
    path("strict", strict_view),
    path("free", free_view),
]


@pytest.fixture(autouse=True)
def host(settings, configure):
    configure(PUBLIC_CSP=True)
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [
        "proxyhealth.middleware.ProxyHostsMiddleware",
        "django.middleware.csp.ContentSecurityPolicyMiddleware",
        *django_settings.MIDDLEWARE,
    ]
    settings.SECURE_CSP = {"default-src": [CSP.SELF], "script-src": [CSP.SELF, CSP.NONCE]}
    settings.SECURE_CSP_REPORT_ONLY = {"default-src": [CSP.NONE], "connect-src": [CSP.SELF]}
    commit([make_status(make_proxy("paris"))], take_token(), full_round=a_round())


async def async_get(path):
    return await AsyncClient().get(path)


@pytest.mark.parametrize("where", ["sync", "async"])
@pytest.mark.parametrize("get", [lambda path: Client().get(path), lambda path: asyncio.run(async_get(path))])
def test_secure_csp__has_the_proxies_and_the_nonce(get, where):
    nonces = set()
    for _ in range(2):
        response = get(f"/{where}")
        nonce = response.text
        nonces.add(nonce)
        assert response[CSP.HEADER_ENFORCE] == (
            f"default-src 'self'; connect-src 'self' {OURS}; script-src 'self' 'nonce-{nonce}'"
        )
        assert response[CSP.HEADER_REPORT_ONLY] == f"default-src 'none'; connect-src 'self' {OURS}"
    assert len(nonces) == 2


def test_secure_csp__overridden_by_a_view():
    assert Client().get("/strict")[CSP.HEADER_ENFORCE] == f"connect-src {OURS}"
    assert CSP.HEADER_ENFORCE not in Client().get("/free").headers


def test_secure_csp__of_a_404_page():
    response = Client().get("/nowhere")
    assert response.status_code == 404
    assert OURS in response[CSP.HEADER_ENFORCE]


def test_secure_csp__no_policy_gets_none(settings):
    settings.SECURE_CSP = settings.SECURE_CSP_REPORT_ONLY = {}
    response = Client().get("/sync")
    assert CSP.HEADER_ENFORCE not in response.headers
    assert CSP.HEADER_REPORT_ONLY not in response.headers
