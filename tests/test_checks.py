import pytest
from django.core.checks import registry, run_checks
from django.core.exceptions import ImproperlyConfigured

from proxyhealth.checks import SETTINGS, check_settings
from proxyhealth.conf import LINK_LOCAL_NETWORKS, METADATA_NETWORKS, NAMES, conf


def ids(messages):
    return [message.id for message in messages]


def test_checks__registered_without_messages(db):
    assert check_settings in registry.registry.get_checks()
    assert [m for m in run_checks() if m.id.startswith("proxyhealth.")] == []


def test_checks__ids_of_settings():
    """Hosts write ids into SILENCED_SYSTEM_CHECKS. An id must stay the same."""
    assert {name: id for name, (id, _) in SETTINGS.items()} == {
        "INTERVAL": "E010",
        "TIMEOUT": "E011",
        "CONCURRENCY": "E012",
        "SHARD_SIZE": "E013",
        "CACHE": "E014",
        "READ_INTERVAL": "E015",
        "STALE_AFTER": "E016",
        "CA_BUNDLE": "E017",
        "TLS_EXPIRY_WARNING": "E018",
        "ADDRESS_DENY": "E019",
        "ADDRESS_ALLOW": "E020",
        "CANARY_URLS": "E021",
        "METRICS_NAMESPACE": "E022",
        "PRIMARY": "E023",
        "PUBLIC_REGIONS": "E024",
        "STATUS_PAGE": "E043",
        "STATUS_PAGE_INDEX": "E044",
        "AUTHENTICATE": "E025",
        "METRICS_TOKEN": "E026",
        "PUBLIC_CSP": "E027",
        "RUNBOOK_URL": "E028",
        "FAILURE_THRESHOLD": "E036",
        "RECOVERY_THRESHOLD": "E037",
        "RECHECK_AFTER": "E038",
        "HISTORY_DAYS": "E039",
        "GROUP_INTERVAL": "E040",
        "HEARTBEAT_URLS": "E041",
        "BASE_URL": "E042",
    }


def test_checks__every_setting_has_its_own_id_and_hint():
    assert set(SETTINGS) == set(NAMES)
    assert (
        len({id for id, _ in SETTINGS.values()}) == len({hint for _, hint in SETTINGS.values()}) == len(NAMES)
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("INTERVAL", "60", "must be a number of seconds, at most a year, not '60'"),
        ("INTERVAL", True, "must be a number of seconds, at most a year, not True"),
        ("INTERVAL", float("nan"), "must be a number of seconds, at most a year, not nan"),
        ("TIMEOUT", 1e10, "must be a number of seconds above 0, at most a year, not 10000000000.0"),
        ("STALE_AFTER", 1e12, "must be a number of seconds above 0, at most a year, not 1000000000000.0"),
        ("TIMEOUT", 0, "must be a number of seconds above 0, at most a year, not 0"),
        ("TIMEOUT", -1, "must be a number of seconds above 0, at most a year, not -1"),
        ("TIMEOUT", None, "must be a number of seconds above 0, at most a year, not None"),
        ("TIMEOUT", float("inf"), "must be a number of seconds above 0, at most a year, not inf"),
        ("FAILURE_THRESHOLD", 0, "must be a whole number, 1 or more, not 0"),
        ("RECOVERY_THRESHOLD", 1.5, "must be a whole number, 1 or more, not 1.5"),
        ("RECHECK_AFTER", 0, "must be a number of seconds above 0, at most a year, not 0"),
        ("HISTORY_DAYS", 0, "must be a number of days, from 1 to 36,500, not 0"),
        ("GROUP_INTERVAL", -1, "must be a number of seconds from 0 to a year, not -1"),
        *(
            ("HEARTBEAT_URLS", value, "must be a list of URLs such as ['https://example.com/']")
            for value in ("https://hc.example.com/secret", ["https://hc.example.com/secret", 1], None)
        ),
        ("CONCURRENCY", 0, "must be a whole number, 1 or more, not 0"),
        ("CONCURRENCY", 1.5, "must be a whole number, 1 or more, not 1.5"),
        ("SHARD_SIZE", "many", "must be a whole number, 1 or more, not 'many'"),
        ("CACHE", "nowhere", "must be an alias in CACHES (default), not 'nowhere'"),
        ("CACHE", None, "must be an alias in CACHES (default), not None"),
        ("READ_INTERVAL", -0.5, "must be a number of seconds from 0 to a year, not -0.5"),
        ("STALE_AFTER", 0, "must be a number of seconds above 0, at most a year, not 0"),
        ("CA_BUNDLE", "/no/such/file", "must be the path of a file that exists, not '/no/such/file'"),
        ("CA_BUNDLE", 5, "must be the path of a file, not 5"),
        ("TLS_EXPIRY_WARNING", -1, "must be a number of days, 0 or more, not -1"),
        ("TLS_EXPIRY_WARNING", "soon", "must be a number of days, 0 or more, not 'soon'"),
        ("ADDRESS_DENY", "10.0.0.0/8", "must be a list of networks such as ['10.0.0.0/8'], not '10.0.0.0/8'"),
        (
            "ADDRESS_DENY",
            ["10.0.0.1/8"],
            (
                "must be a list of networks such as ['10.0.0.0/8'] (10.0.0.1/8 has host bits set), "
                "not ['10.0.0.1/8']"
            ),
        ),
        ("ADDRESS_ALLOW", 10, "must be a list of networks such as ['10.0.0.0/8'], not 10"),
        (
            "ADDRESS_ALLOW",
            [[]],
            "must be a list of networks such as ['10.0.0.0/8'] (unhashable type: 'list'), not [[]]",
        ),
        (
            "CANARY_URLS",
            "https://example.com/",
            "must be a list of URLs such as ['https://example.com/'], not 'https://example.com/'",
        ),
        ("CANARY_URLS", ["a.b"], "must be a list of URLs such as ['https://example.com/'], not ['a.b']"),
        (
            "METRICS_NAMESPACE",
            "my-name",
            "must consist of letters, digits and underscores, and not begin with a digit, not 'my-name'",
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
                "must have only the keys id, display_name, icon, url, wildcard_hostname, "
                "not {'url': 'https://example.com', 'name': 'here'}"
            ),
        ),
        (
            "PRIMARY",
            {"url": "https://example.com", "icon": None},
            "must have a string as 'icon', not {'url': 'https://example.com', 'icon': None}",
        ),
        (
            "PRIMARY",
            {"url": "https://example.com", "id": "1"},
            "must have a UUID as 'id', or no 'id', not {'url': 'https://example.com', 'id': '1'}",
        ),
        *(
            (name, value, f"must be the URL of a page, without a fragment, not {value!r}")
            for name in ("RUNBOOK_URL", "BASE_URL")
            for value in (
                "runbook.md",
                "https://a.b/#c",
                "https://a.b/{{",
                'https://a.b/"',
                "https://a.b/ ",
                1,
            )
        ),
        ("PUBLIC_REGIONS", 1, "must be True or False, not 1"),
        ("PUBLIC_CSP", "false", "must be True or False, not 'false'"),
        *(
            (
                "AUTHENTICATE",
                value,
                f"must be the dotted path of a function such as {path!r}{detail}, not {value!r}",
            )
            for path in ("host.api.authenticate",)
            for value, detail in (
                (len, ""),
                ("tests.nowhere.authenticate", " (No module named 'tests.nowhere')"),
                ("tests.test_access.not_a_function", ""),
            )
        ),
        *(
            ("METRICS_TOKEN", value, "must consist of printable ASCII characters without spaces")
            for value in ("secret\n", "se cret", "sécret", b"secret", None)
        ),
    ],
)
def test_checks__invalid_value(configure, name, value, message):
    configure(**{name: value})
    (error,) = check_settings()
    assert error.msg == f"PROXYHEALTH['{name}'] {message}."
    id, hint = SETTINGS[name]
    assert (error.id, error.hint) == (f"proxyhealth.{id}", hint)
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
        ("RUNBOOK_URL", "https://a.b/?page=c", "https://a.b/?page=c"),
        ("METRICS_TOKEN", "Zm9v-_+/=.~", "Zm9v-_+/=.~"),
        ("GROUP_INTERVAL", 0, 0.0),
        ("HEARTBEAT_URLS", ["https://hc.example.com/secret?a=b"], ("https://hc.example.com/secret?a=b",)),
        ("BASE_URL", "https://control.example.com/", "https://control.example.com/"),
    ],
)
def test_settings__valid_values(configure, name, value, result):
    configure(**{name: value})
    assert check_settings() == []
    assert getattr(conf, name) == result


def test_settings__defaults(settings):
    del settings.PROXYHEALTH
    assert {name: getattr(conf, name) for name in NAMES} == {
        "INTERVAL": 60.0,
        "TIMEOUT": 5.0,
        "FAILURE_THRESHOLD": 1,
        "RECOVERY_THRESHOLD": 1,
        "RECHECK_AFTER": 5.0,
        "HISTORY_DAYS": 400.0,
        "GROUP_INTERVAL": 30.0,
        "HEARTBEAT_URLS": (),
        "BASE_URL": "",
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
        "RUNBOOK_URL": "",
        "PRIMARY": None,
        "PUBLIC_REGIONS": False,
        "STATUS_PAGE": False,
        "STATUS_PAGE_INDEX": False,
        "PUBLIC_CSP": False,
        "AUTHENTICATE": None,
        "METRICS_TOKEN": "",
    }
    assert [*map(str, conf.ADDRESS_DENY)] == [*LINK_LOCAL_NETWORKS, *METADATA_NETWORKS]


def test_checks__misspelt_name(configure):
    configure(TIME_OUT=5)
    (error,) = check_settings()
    assert (error.id, error.msg) == ("proxyhealth.E002", "Unknown setting PROXYHEALTH['TIME_OUT'].")
    assert error.hint == "Did you mean 'TIMEOUT'?"


def test_checks__unknown_name(configure):
    configure(XYZ=5)
    assert check_settings()[0].hint.startswith("Valid settings: INTERVAL, TIMEOUT,")


def test_checks__not_a_dictionary(settings):
    settings.PROXYHEALTH = ["INTERVAL"]
    assert ids(check_settings()) == ["proxyhealth.E001"]
    with pytest.raises(ImproperlyConfigured, match="must be a dictionary"):
        _ = conf.TIMEOUT


def test_checks__cache_without_redis(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert ids(check_settings()) == ["proxyhealth.E003"]


@pytest.mark.parametrize(
    "backend",
    [
        "django.core.cache.backends.redis.RedisCache",
        "django_prometheus.cache.backends.redis.NativeRedisCache",
        "django_redis.cache.RedisCache",
        "no.such.backend",  # Django reports it
    ],
)
def test_checks__accepted_caches(settings, backend):
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": settings.REDIS_URL}}
    assert check_settings() == []


def test_checks__stale_after_not_above_interval(configure):
    configure(INTERVAL=60, STALE_AFTER=60)
    assert ids(check_settings()) == ["proxyhealth.W001"]
