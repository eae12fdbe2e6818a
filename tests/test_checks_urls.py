"""The system checks of the URLs of a host."""

import dataclasses
import functools
import sys
import types

import pytest
from django.core.checks import registry
from django.urls import include, path
from django.views.decorators.cache import never_cache
from django_prometheus.exports import ExportToDjangoView

from proxyhealth.checks import check_deployment, check_settings
from proxyhealth.metrics import exposition


def ids(messages):
    return [message.id for message in messages]


@pytest.fixture
def urls(settings):
    """Return a function that sets the URL patterns of the host."""

    module = types.ModuleType("urls_of_a_host")
    sys.modules[module.__name__] = module

    def change(*patterns):
        module.urlpatterns = list(patterns)
        settings.ROOT_URLCONF = module.__name__

    yield change
    del sys.modules[module.__name__]


THEIRS = path("monitoring/", include("django_prometheus.urls"))
OURS = path("", include("proxyhealth.metrics.urls"))
OURS_AND_A_PARAMETER = path("<slug:host>/metrics", exposition.metrics)
THEIRS_AT_OUR_PATH = path("", include("django_prometheus.urls"))


def wrapped(view):
    @functools.wraps(view)
    def wrapper(request):
        return view(request)

    return wrapper


@dataclasses.dataclass
class Unhashable:
    def __call__(self, request):
        """Be a view: any callable can be one."""


class WrapsItself:
    def __call__(self, request):
        """Be a view with an endless chain of ``__wrapped__``."""

    @property
    def __wrapped__(self):
        return self


ODD = [path("odd", Unhashable()), path("odder", WrapsItself())]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([THEIRS], ["proxyhealth.W002"]),
        ([path("metrics", wrapped(ExportToDjangoView))], ["proxyhealth.W002"]),
        ([path("metrics", functools.partial(ExportToDjangoView))], ["proxyhealth.W002"]),
        ([THEIRS_AT_OUR_PATH, OURS], ["proxyhealth.W002"]),
        ([*ODD, THEIRS], ["proxyhealth.W002"]),
        ([THEIRS, OURS], []),
        ([OURS, THEIRS_AT_OUR_PATH], []),
        ([THEIRS, OURS_AND_A_PARAMETER], []),
        ([path("numbers", never_cache(exposition.metrics))], []),
        ([*ODD, OURS], []),
        ([], []),
    ],
)
def test_checks__view_that_omits_the_metrics(urls, patterns, expected):
    urls(*patterns)
    messages = check_settings()
    assert ids(messages) == expected
    assert all("'proxyhealth.metrics.urls'" in message.hint for message in messages)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([THEIRS, OURS], ["proxyhealth.W003"]),
        ([OURS, path("other", never_cache(ExportToDjangoView))], ["proxyhealth.W003"]),
        ([OURS, THEIRS_AT_OUR_PATH], []),
        ([OURS], []),
        ([], []),
    ],
)
def test_checks__view_without_token(urls, configure, patterns, expected):
    urls(*patterns)
    assert check_settings() == []
    configure(METRICS_TOKEN="secret")
    messages = check_settings()
    assert ids(messages) == expected
    assert all("'proxyhealth.metrics.urls'" in message.hint for message in messages)
    assert not any("secret" in message.msg for message in messages)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROMETHEUS_METRICS_EXPORT_PORT", 8001), ("PROMETHEUS_METRICS_EXPORT_PORT_RANGE", range(8001, 8010))],
)
def test_checks__port_without_token(urls, configure, settings, name, value):
    urls(OURS)
    setattr(settings, name, value)
    assert check_settings() == []
    configure(METRICS_TOKEN="secret")
    (message,) = check_settings()
    assert (message.id, name in message.msg) == ("proxyhealth.W003", True)
    assert "access to that port" in message.hint


def test_checks__public_metrics_in_a_deployment(urls, configure):
    assert check_deployment in registry.registry.get_checks(include_deployment_checks=True)
    assert check_deployment not in registry.registry.get_checks()
    urls(OURS)
    assert ids(check_deployment()) == ["proxyhealth.W004"]
    configure(METRICS_TOKEN="se cret")
    assert check_deployment() == [], "check_settings reports it"
    configure(METRICS_TOKEN="secret")
    assert check_deployment() == []
    configure(METRICS_TOKEN="")
    urls()
    assert check_deployment() == []


def test_checks__broken_urls_are_left_to_django(settings):
    settings.ROOT_URLCONF = "tests.no_such_module"
    assert check_settings() == check_deployment() == []
