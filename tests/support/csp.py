"""Responses with a Content Security Policy, as the middleware changes them."""

from dataclasses import replace
from types import SimpleNamespace

from django.http import HttpResponse
from django.test import RequestFactory

from proxyhealth.middleware import HEADERS, ProxyHostsMiddleware
from tests.support.values import make_proxy, make_status

ENFORCED, REPORT_ONLY = HEADERS

# The sources of the proxy "paris".
OURS = "https://paris.example.com wss://paris.example.com"

USER = SimpleNamespace(is_authenticated=True)


def apply_middleware(response, user=USER):
    """Return ``response`` as the middleware changes it for a user, by default one who may see the regions."""
    request = RequestFactory().get("/")
    request.user = user
    return ProxyHostsMiddleware(lambda request: response)(request)


def extended_policy(policy, name=ENFORCED, user=USER):
    """Return ``policy`` as the middleware changes it, in the header ``name``."""
    return apply_middleware(HttpResponse(headers={name: policy}), user)[name]


def status_of_host(host, url=None):
    """Return a status whose proxy has this host, and the URL ``https://<host>`` by default."""
    proxy = replace(make_proxy(), url=f"https://{host}" if url is None else url)
    return replace(make_status(proxy), proxy_host=host)
