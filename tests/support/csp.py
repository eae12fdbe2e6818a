"""Responses with a Content Security Policy, as the middleware changes them."""

from dataclasses import replace

from django.http import HttpResponse
from django.test import RequestFactory

from proxyhealth.middleware import HEADERS, ProxyHostsMiddleware
from tests.support.values import make_proxy, make_status

ENFORCED, REPORT_ONLY = HEADERS

# The sources of the proxy "paris".
OURS = "https://paris.example.com wss://paris.example.com"


def apply_middleware(response):
    """Return ``response`` as the middleware changes it."""
    return ProxyHostsMiddleware(lambda request: response)(RequestFactory().get("/"))


def extended_policy(policy, name=ENFORCED):
    """Return ``policy`` as the middleware changes it, in the header ``name``."""
    return apply_middleware(HttpResponse(headers={name: policy}))[name]


def status_of_host(host, url=None):
    """Return a status whose proxy has this host, and the URL ``https://<host>`` by default."""
    proxy = replace(make_proxy(), url=f"https://{host}" if url is None else url)
    return replace(make_status(proxy), proxy_host=host)
