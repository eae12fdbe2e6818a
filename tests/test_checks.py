import dataclasses
import functools
import sys
import types

import pytest
from django.core.checks import registry, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.urls import include, path
from django.views.decorators.cache import never_cache
from django_prometheus.exports import ExportToDjangoView

from proxyhealth.checks import HINTS, IDS, check_deployment, check_settings
from proxyhealth.conf import NAMES, conf
from proxyhealth.metrics import exposition


def ids(messages):
    return [message.id for message in messages]


def test_checks__are_registered_and_silent_by_default():
    assert check_settings in registry.registry.get_checks()
    assert [m for m in run_checks() if m.id.startswith("proxyhealth.")] == []


def test_checks__every_setting_has_an_id_and_a_hint():
    assert set(HINTS) == set(IDS) == set(NAMES)
    assert len(set(IDS.values())) == len(NAMES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("INTERVAL", "60", "must be a number of seconds, not '60'"),
        ("INTERVAL", True, "must be a number of seconds, not True"),
        ("INTERVAL", float("nan"), "must be a number of seconds, not nan"),
        ("TIMEOUT", 1e10, "must be a number of seconds, a year at most, not 10000000000.0"),
        ("STALE_AFTER", 1e12, "must be a number of seconds, a year at most, not 1000000000000.0"),
        ("TIMEOUT", 0, "must be a number of seconds above 0, not 0"),
        ("TIMEOUT", -1, "must be a number of seconds above 0, not -1"),
        ("TIMEOUT", None, "must be a number of seconds, not None"),
        ("TIMEOUT", float("inf"), "must be a number of seconds, not inf"),
        ("CONCURRENCY", 0, "must be a whole number, 1 or more, not 0"),
        ("CONCURRENCY", 1.5, "must be a whole number, 1 or more, not 1.5"),
        ("SHARD_SIZE", "many", "must be a whole number, 1 or more, not 'many'"),
        ("CACHE", "nowhere", "must be an alias in CACHES (default), not 'nowhere'"),
        ("CACHE", None, "must be an alias in CACHES (default), not None"),
        ("READ_INTERVAL", -0.5, "must be a number of seconds, 0 or more, not -0.5"),
        ("STALE_AFTER", 0, "must be a number of seconds above 0, not 0"),
        ("CA_BUNDLE", "/no/such/file", "must be the path of a file that exists, not '/no/such/file'"),
        ("CA_BUNDLE", 5, "must be the path of a file, not 5"),
        ("TLS_EXPIRY_WARNING", -1, "must be a number of days, 0 or more, not -1"),
        ("TLS_EXPIRY_WARNING", "soon", "must be a number of days, 0 or more, not 'soon'"),
        ("ADDRESS_DENY", "10.0.0.0/8", "must be a list of networks such as '10.0.0.0/8', not '10.0.0.0/8'"),
        (
            "ADDRESS_DENY",
            ["10.0.0.1/8"],
            (
                "must be a list of networks such as '10.0.0.0/8' (10.0.0.1/8 has host bits set), "
                "not ['10.0.0.1/8']"
            ),
        ),
        ("ADDRESS_ALLOW", 10, "must be a list of networks such as '10.0.0.0/8', not 10"),
        (
            "METRICS_NAMESPACE",
            "my-name",
            "must be empty, or letters, digits and underscores, and not begin with a digit, not 'my-name'",
        ),
        (
            "PRIMARY",
            "https://example.com",
            "must be a dictionary such as {'url': 'https://example.com'}, not 'https://example.com'",
        ),
        ("PRIMARY", {}, "must have a 'url' such as 'https://example.com', not {}"),
        (
            "PRIMARY",
            {"url": "ftp://example.com"},
            "must have a 'url' such as 'https://example.com', not {'url': 'ftp://example.com'}",
        ),
        (
            "PRIMARY",
            {"url": "https://example.com", "name": "here"},
            (
                "must have no keys but id, display_name, icon, url, wildcard_hostname, "
                "not {'url': 'https://example.com', 'name': 'here'}"
            ),
        ),
        (
            "PRIMARY",
            {"url": "https://example.com", "icon": None},
            "must have a text as its 'icon', not {'url': 'https://example.com', 'icon': None}",
        ),
        (
            "PRIMARY",
            {"url": "https://example.com", "id": "1"},
            "must have a UUID as its 'id', or none, not {'url': 'https://example.com', 'id': '1'}",
        ),
        ("PUBLIC_REGIONS", 1, "must be True or False, not 1"),
        ("PUBLIC_REGIONS", "false", "must be True or False, not 'false'"),
        (
            "AUTHENTICATE",
            len,
            (
                "must be the dotted path of a function, and no coroutine, such as 'host.api.authenticate', "
                "not <built-in function len>"
            ),
        ),
        (
            "AUTHENTICATE",
            "tests.nowhere.authenticate",
            (
                "must be the dotted path of a function, and no coroutine, such as 'host.api.authenticate' "
                "(No module named 'tests.nowhere'), not 'tests.nowhere.authenticate'"
            ),
        ),
        (
            "AUTHENTICATE",
            "tests.test_access.not_a_function",
            (
                "must be the dotted path of a function, and no coroutine, such as 'host.api.authenticate', "
                "not 'tests.test_access.not_a_function'"
            ),
        ),
        (
            "AUTHENTICATE",
            "tests.test_access.coroutine",
            (
                "must be the dotted path of a function, and no coroutine, such as 'host.api.authenticate', "
                "not 'tests.test_access.coroutine'"
            ),
        ),
        *(
            (
                "METRICS_TOKEN",
                value,
                "must be empty, or letters, digits and signs of ASCII without a space or the end of a line",
            )
            for value in ("secret\n", "se cret", "sécret", b"secret", None)
        ),
    ],
)
def test_checks__a_wrong_value(configure, name, value, message):
    configure(**{name: value})
    (error,) = check_settings()
    assert error.msg == f"PROXYHEALTH['{name}'] {message}."
    assert error.id == IDS[name]
    assert error.hint == HINTS[name]
    with pytest.raises(ImproperlyConfigured, match=name):
        getattr(conf, name)


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("INTERVAL", 0, 60.0),
        ("INTERVAL", -5, 60.0),
        ("INTERVAL", 30, 30.0),
        ("STALE_AFTER", None, 180.0),
        ("STALE_AFTER", 90, 90.0),
        ("READ_INTERVAL", 0, 0.0),
        ("CA_BUNDLE", "", ""),
        ("CA_BUNDLE", __file__, __file__),
        ("ADDRESS_DENY", [], ()),
        ("METRICS_NAMESPACE", "coderd", "coderd"),
        ("METRICS_TOKEN", "Zm9v-_+/=.~", "Zm9v-_+/=.~"),
    ],
)
def test_settings__good_values(configure, name, value, result):
    configure(**{name: value})
    assert check_settings() == []
    assert getattr(conf, name) == result


def test_settings__defaults(settings):
    del settings.PROXYHEALTH
    assert {name: getattr(conf, name) for name in NAMES} == {
        "INTERVAL": 60.0,
        "TIMEOUT": 5.0,
        "CONCURRENCY": 512,
        "SHARD_SIZE": 1000,
        "CACHE": "default",
        "READ_INTERVAL": 0.5,
        "STALE_AFTER": 180.0,
        "CA_BUNDLE": "",
        "TLS_EXPIRY_WARNING": 14.0,
        "ADDRESS_DENY": conf.ADDRESS_DENY,
        "ADDRESS_ALLOW": (),
        "CANARY_URLS": (),
        "METRICS_NAMESPACE": "",
        "PRIMARY": None,
        "PUBLIC_REGIONS": False,
        "AUTHENTICATE": None,
        "METRICS_TOKEN": "",
    }
    assert [str(network) for network in conf.ADDRESS_DENY] == ["169.254.0.0/16", "fe80::/10"]


def test_checks__a_misspelt_name(configure):
    configure(TIME_OUT=5)
    (error,) = check_settings()
    assert (error.id, error.msg) == ("proxyhealth.E002", "PROXYHEALTH has no 'TIME_OUT'.")
    assert error.hint == "Did you mean 'TIMEOUT'?"


def test_checks__a_name_like_no_other(configure):
    configure(XYZ=5)
    assert check_settings()[0].hint.startswith("There are INTERVAL, TIMEOUT,")


def test_checks__not_a_dictionary(settings):
    settings.PROXYHEALTH = ["INTERVAL"]
    assert ids(check_settings()) == ["proxyhealth.E001"]
    with pytest.raises(ImproperlyConfigured, match="must be a dictionary"):
        _ = conf.TIMEOUT


def test_checks__a_cache_that_other_processes_cannot_read(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert ids(check_settings()) == ["proxyhealth.E003"]


@pytest.mark.parametrize(
    "backend",
    [
        "django.core.cache.backends.redis.RedisCache",
        "django_prometheus.cache.backends.redis.NativeRedisCache",
        "django_redis.cache.RedisCache",
        "no.such.backend",  # Django's own check names it
    ],
)
def test_checks__caches_that_are_let_through(settings, backend):
    settings.CACHES = {"default": {"BACKEND": backend}}
    assert check_settings() == []


def test_checks__stale_before_the_next_round(configure):
    configure(INTERVAL=60, STALE_AFTER=60)
    assert ids(check_settings()) == ["proxyhealth.W001"]


@pytest.fixture
def urls(settings):
    """``urls(*patterns)``: the host project has these."""

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
        """A view may be anything that can be called."""


class WrapsItself:
    def __call__(self, request):
        """Nor has it to be well made."""

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
def test_checks__a_view_that_loses_the_metrics(urls, patterns, expected):
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
def test_checks__a_view_that_wants_no_token(urls, configure, patterns, expected):
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
def test_checks__a_port_that_wants_no_token(urls, configure, settings, name, value):
    urls(OURS)
    setattr(settings, name, value)
    assert check_settings() == []
    configure(METRICS_TOKEN="secret")
    (message,) = check_settings()
    assert (message.id, name in message.msg) == ("proxyhealth.W003", True)
    assert "from that port" in message.hint


def test_checks__metrics_that_are_open_on_a_site_that_others_can_reach(urls, configure):
    assert check_deployment in registry.registry.get_checks(include_deployment_checks=True)
    assert check_deployment not in registry.registry.get_checks()
    urls(OURS)
    assert ids(check_deployment()) == ["proxyhealth.W004"]
    configure(METRICS_TOKEN="se cret")
    assert check_deployment() == [], "there is an error of it already"
    configure(METRICS_TOKEN="secret")
    assert check_deployment() == []
    configure(METRICS_TOKEN="")
    urls()
    assert check_deployment() == []


def test_checks__leave_broken_urls_to_django(settings):
    settings.ROOT_URLCONF = "tests.no_such_module"
    assert check_settings() == check_deployment() == []
