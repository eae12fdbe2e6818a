"""The system check of the URLs of the status page."""

import types

from django.urls import include, path

from proxyhealth.checks import check_settings


def ids(settings, *patterns):
    settings.ROOT_URLCONF = types.ModuleType("urls_of_a_host")
    settings.ROOT_URLCONF.urlpatterns = list(patterns)
    return [message.id for message in check_settings()]


def test_check__on_without_its_urls_is_a_warning(settings, configure):
    configure(STATUS_PAGE=True)
    assert ids(settings) == ["proxyhealth.W009"]
    assert ids(settings, path("up/", include("proxyhealth.status_page.urls"))) == []


def test_check__off_with_its_urls_is_fine(settings, configure):
    configure(STATUS_PAGE=False)
    assert ids(settings, path("", include("proxyhealth.status_page.urls"))) == []
