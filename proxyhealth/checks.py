"""The system checks of the settings, of Celery, and of the URLs for metrics."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from inspect import unwrap
from ipaddress import ip_network
from typing import Any

from celery import signature
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.creation import TEST_DATABASE_PREFIX
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve
from django.utils.module_loading import import_string
from kombu.serialization import dumps

from proxyhealth import isolation
from proxyhealth.conf import LINK_LOCAL_NETWORKS, METADATA_NETWORKS, NAMES, Network, conf, is_within
from proxyhealth.exceptions import StoreError
from proxyhealth.metrics import exposition
from proxyhealth.rounds import broker, steps
from proxyhealth.rounds.worker import library_of_pool
from proxyhealth.status_page import views as status_page
from proxyhealth.storage.client import require_client
from proxyhealth.task_names import TaskName
from proxyhealth.texts import without_passwords

try:
    from django_prometheus.exports import ExportToDjangoView
except ImportError:  # an extra
    ExportToDjangoView = None

# The id and the hint of each setting. Ids are public: never change one, never reuse one.
SETTINGS = {
    "INTERVAL": ("E010", "Set the seconds between two rounds, for example 60. 0 or less means 60."),
    "TIMEOUT": ("E011", "Set the seconds that a whole probe may take, for example 5."),
    "FAILURE_THRESHOLD": (
        "E036",
        "Set the number of failed probes in a row that end the status ok, for example 3.",
    ),
    "RECOVERY_THRESHOLD": (
        "E037",
        "Set the number of successful probes in a row that end a failure, for example 2.",
    ),
    "RECHECK_AFTER": ("E038", "Set the seconds until an unconfirmed result is probed again, for example 5."),
    "HISTORY_DAYS": ("E039", "Set the days for which transitions and gaps are kept, for example 400."),
    "GROUP_INTERVAL": ("E040", "Set the seconds in which a channel rests after a message, for example 30."),
    "HEARTBEAT_URLS": ("E041", "Set a list of URLs of services that expect heartbeats, or []."),
    "BASE_URL": ("E042", "Set the address of the site, such as 'https://control.example.com', or ''."),
    "CONCURRENCY": ("E012", "Set the number of probes at once in a process, for example 512."),
    "SHARD_SIZE": ("E013", "Set the number of proxies in one task of a round, for example 1000."),
    "CACHE": ("E014", "Set the alias in CACHES of the Redis cache that holds the snapshot."),
    "READ_INTERVAL": ("E015", "Set the seconds between two reads of the snapshot, for example 0.5."),
    "STALE_AFTER": ("E016", "Set the seconds that a snapshot lasts, or None for three intervals."),
    "CA_BUNDLE": ("E017", "Set the path of a PEM file with the certificates of your authorities, or ''."),
    "TLS_EXPIRY_WARNING": ("E018", "Set the days before the expiry, for example 14, or 0 for no warning."),
    "ADDRESS_DENY": ("E019", "Set a list of networks as strings, for example ['169.254.0.0/16']."),
    "ADDRESS_ALLOW": ("E020", "Set a list of networks as strings, or [] to allow all that is not denied."),
    "CANARY_URLS": ("E021", "Set a list of URLs that always respond, such as ['https://example.com/']."),
    "METRICS_NAMESPACE": ("E022", "Set the prefix of all metric names, for example 'coderd', or ''."),
    "RUNBOOK_URL": (
        "E028",
        "Set the address of your copy of the runbook, such as 'https://example.com/runbook'.",
    ),
    "PRIMARY": ("E023", "Set a dictionary with the 'url' of the control plane, or None."),
    "PUBLIC_REGIONS": ("E024", "Set True to make the regions readable without authentication, else False."),
    "STATUS_PAGE": ("E043", "Set True to show the status page to everyone, else False."),
    "STATUS_PAGE_INDEX": ("E044", "Set True to let search engines list the status page, else False."),
    "PUBLIC_CSP": ("E027", "Set True to add the proxies to the policy of every page, else False."),
    "AUTHENTICATE": ("E025", "Set the path of a function from request to user, or None for the session."),
    "METRICS_TOKEN": ("E026", "Set the output of secrets.token_urlsafe(), or '' for public metrics."),
}


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check ``PROXYHEALTH`` and the URLs for metrics. docs/settings.md lists the ids."""
    options = getattr(settings, "PROXYHEALTH", {})
    if not isinstance(options, Mapping):
        return [
            Error(
                "PROXYHEALTH must be a dictionary.",
                hint="For example: PROXYHEALTH = {'INTERVAL': 60}.",
                id="proxyhealth.E001",
            )
        ]
    messages: list[CheckMessage] = []
    for name in options:
        if name not in NAMES:
            close = difflib.get_close_matches(str(name).upper(), NAMES, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Valid settings: {', '.join(NAMES)}."
            messages.append(
                Error(f"Unknown setting PROXYHEALTH[{name!r}].", hint=hint, id="proxyhealth.E002")
            )
    for name in NAMES:
        try:
            getattr(conf, name)
        except ImproperlyConfigured as error:
            # STALE_AFTER also fails if INTERVAL is invalid. Report only the setting that is named.
            if repr(name) in str(error):
                id, hint = SETTINGS[name]
                messages.append(Error(without_passwords(error), hint=hint, id=f"proxyhealth.{id}"))
    if not messages:
        messages = [*_check_cache(), *_check_stale_after(), *_check_metrics(), *_check_status_page()]
    return messages


def _check_cache() -> list[CheckMessage]:
    if isolation.is_isolated():
        return []  # tests need no cache
    backend = str(settings.CACHES[conf.CACHE].get("BACKEND", ""))
    try:
        classes: tuple[type, ...] = import_string(backend).__mro__
    except ImportError:
        return []  # Django reports it
    if any("redis" in cls.__module__ for cls in classes):
        return _check_client()
    return [
        Error(
            f"The cache {conf.CACHE!r} uses {backend}, so processes cannot share the snapshot.",
            hint="Use django.core.cache.backends.redis.RedisCache, or another alias as PROXYHEALTH['CACHE'].",
            id="proxyhealth.E003",
        )
    ]


def _check_client() -> list[CheckMessage]:
    try:
        require_client()
    except StoreError as error:
        reason = str(error).rstrip(".")
        return [
            Error(
                f"No client can be made from CACHES[{conf.CACHE!r}]: {reason}.",
                hint="Correct LOCATION and OPTIONS. With django-redis, use DefaultClient or SentinelClient.",
                id="proxyhealth.E008",
            )
        ]
    return []


def _check_stale_after() -> list[CheckMessage]:
    if conf.STALE_AFTER > conf.INTERVAL:
        return []
    return [
        Warning(
            "PROXYHEALTH['STALE_AFTER'] is not longer than INTERVAL, so snapshots are stale between rounds.",
            hint="Set a longer STALE_AFTER, or remove it for the default of three intervals.",
            id="proxyhealth.W001",
        )
    ]


def _check_metrics() -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    hint = "Include 'proxyhealth.metrics.urls' in place of 'django_prometheus.urls'."
    django_prometheus_served = _is_served(ExportToDjangoView)
    # Even without PROMETHEUS_MULTIPROC_DIR: web servers may have it, although this process does not.
    if django_prometheus_served and not _is_served(exposition.metrics):
        messages.append(
            Warning(
                "Only the view of django-prometheus serves metrics. With PROMETHEUS_MULTIPROC_DIR, it omits "
                "those of proxyhealth.",
                hint=hint,
                id="proxyhealth.W002",
            )
        )
    ports = ("PROMETHEUS_METRICS_EXPORT_PORT", "PROMETHEUS_METRICS_EXPORT_PORT_RANGE")
    port = next((name for name in ports if getattr(settings, name, None)), None)
    if conf.METRICS_TOKEN and (django_prometheus_served or port):
        source = "the view of django-prometheus" if django_prometheus_served else f"the port of {port}"
        messages.append(
            Warning(
                f"PROXYHEALTH['METRICS_TOKEN'] is set, but {source} serves the metrics without it.",
                hint=hint if django_prometheus_served else f"Restrict access to that port, or remove {port}.",
                id="proxyhealth.W003",
            )
        )
    return messages


def _check_status_page() -> list[CheckMessage]:
    if not conf.STATUS_PAGE or _is_served(status_page.status):
        return []
    return [
        Warning(
            "PROXYHEALTH['STATUS_PAGE'] is set, but no URL leads to the status page.",
            hint="Include 'proxyhealth.status_page.urls' in the URLs, or remove the setting.",
            id="proxyhealth.W009",
        )
    ]


def check_celery(**kwargs: Any) -> list[CheckMessage]:
    """Check the settings of Celery with which rounds would fail."""
    app = broker.celery_app()
    messages: list[CheckMessage] = []
    if library_of_pool(app.conf.worker_pool):
        messages.append(
            Error(
                f"CELERY_WORKER_POOL is {app.conf.worker_pool!r}, but probes need real threads.",
                hint="Use 'prefork' or 'threads' for the workers of proxyhealth. If other workers need it, "
                "start them with --pool and --queues, and remove this setting.",
                id="proxyhealth.E030",
            )
        )
    serializer = app.tasks[TaskName.CHECK_SHARD].serializer
    try:
        dumps(signature(TaskName.CHECK_SHARD.value), serializer=serializer)
    except Exception as error:
        messages.append(
            Error(
                f"Celery cannot send the shards of a round as {serializer!r}: {without_passwords(error)}",
                hint="Add 'json' to CELERY_ACCEPT_CONTENT. Other tasks may keep their serializer.",
                id="proxyhealth.E031",
            )
        )
    try:
        broker.queues_of_tasks(app)
    except Exception as error:
        messages.append(
            Error(
                f"Celery cannot send the tasks of proxyhealth: {without_passwords(error)}",
                hint="Add the queue to CELERY_TASK_QUEUES, or correct CELERY_TASK_ROUTES.",
                id="proxyhealth.E033",
            )
        )
    return [
        *messages,
        *_check_results(app),
        *_check_fractions(str(app.conf.beat_scheduler)),
        *_check_schedule(app),
    ]


def _check_results(app: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    try:
        app.backend.ensure_chords_allowed()
    except Exception:
        return []  # one process runs each round; or Celery itself reports the backend
    try:
        app.backend.decode(app.backend.encode({"shard": 0, "found": []}))
    except Exception as error:
        messages.append(
            Error(
                f"Celery cannot read the results of the shards of a round: {without_passwords(error)}",
                hint=f"Add {app.conf.result_serializer!r}, which is CELERY_RESULT_SERIALIZER, to "
                "CELERY_RESULT_ACCEPT_CONTENT, or to CELERY_ACCEPT_CONTENT if that is not set.",
                id="proxyhealth.E034",
            )
        )
    with suppress(ImproperlyConfigured, TypeError):  # check_settings or Celery reports it
        expires, needed = app.conf.result_expires, steps.lease_limit(conf.SHARD_SIZE)
        seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires or math.inf)
        if seconds < needed:
            messages.append(
                Error(
                    f"CELERY_RESULT_EXPIRES is {seconds:g} s, but a shard of a round may take {needed:g} s.",
                    hint="Remove the setting, because the default is one day, or set a longer time.",
                    id="proxyhealth.E035",
                )
            )
    return messages


def _check_fractions(scheduler: str) -> list[CheckMessage]:
    try:
        interval = conf.INTERVAL
    except ImproperlyConfigured:
        return []  # check_settings reports it
    uses_table = apps.is_installed("django_celery_beat") or "django_celery_beat" in scheduler
    if interval.is_integer() or not uses_table:
        return []
    return [
        Error(
            f"PROXYHEALTH['INTERVAL'] is {interval}, but django-celery-beat stores whole seconds.",
            hint=f"Set it to {max(1, round(interval))}, or use the default scheduler of Celery beat.",
            id="proxyhealth.E032",
        )
    ]


def check_isolation(**kwargs: Any) -> list[CheckMessage]:
    """Warn of tests that use the cache and the broker of the settings."""
    if isolation.is_decided() or not _uses_test_database():
        return []
    return [
        Warning(
            "The database is one for tests, but the cache and the broker are those of the settings.",
            hint="If tests run in this process, call django.test.utils.setup_test_environment() first. "
            "Otherwise, make sure that the settings lead to no live deployment, and silence this.",
            id="proxyhealth.W006",
        )
    ]


def _check_schedule(app: Any) -> list[CheckMessage]:
    if broker.schedules_rounds(app):
        return []
    return [
        Warning(
            f"The Celery app {app.main!r} has no periodic task for the rounds, so snapshots become stale.",
            hint="Merge beat_schedule(PROXYHEALTH) into CELERY_BEAT_SCHEDULE, or into app.conf.beat_schedule "
            "if the project sets that. If this is not the app of the project, import that app in the "
            "__init__.py beside the settings.",
            id="proxyhealth.W007",
        )
    ]


def _uses_test_database() -> bool:
    names = [str(connection.settings_dict["NAME"]) for connection in connections.all()]
    return any(name.startswith(TEST_DATABASE_PREFIX) or "mode=memory" in name for name in names)


def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Warn of public metrics and of metadata services, but only in ``manage.py check --deploy``."""
    try:
        return [
            *_check_metrics_token(conf.METRICS_TOKEN),
            *_check_metadata(conf.ADDRESS_DENY, conf.ADDRESS_ALLOW),
        ]
    except ImproperlyConfigured:
        return []  # check_settings reports it


def _check_metadata(deny: tuple[Network, ...], allow: tuple[Network, ...]) -> list[CheckMessage]:
    networks = map(ip_network, LINK_LOCAL_NETWORKS + METADATA_NETWORKS)
    missing = [str(network) for network in networks if not is_within(network, deny)]
    if allow or not missing:
        return []
    return [
        Warning(
            f"Probes may connect to metadata services of clouds: ADDRESS_DENY omits {', '.join(missing)}.",
            hint="Add LINK_LOCAL_NETWORKS and METADATA_NETWORKS of proxyhealth.conf, or silence this.",
            id="proxyhealth.W005",
        )
    ]


def _check_metrics_token(token: str) -> list[CheckMessage]:
    if token or not _is_served(exposition.metrics):
        return []
    return [
        Warning(
            "The metrics are public. They contain the names and hosts of all proxies.",
            hint="Set PROXYHEALTH['METRICS_TOKEN'], or restrict access in the web server and silence this.",
            id="proxyhealth.W004",
        )
    ]


def _is_served(view: Callable[..., Any] | None) -> bool:
    """Return True if requests can reach ``view``. Of two views at one path, only the first is reachable."""
    if view is None:
        return False
    target = _unwrapped(view)
    try:
        return any(
            _unwrapped(callback) is target and _is_first(path, callback)
            for path, callback in _views(get_resolver().url_patterns)
        )
    except Exception:
        return False  # the URLs cannot be loaded, and Django reports it


def _views(
    patterns: Iterable[URLPattern | URLResolver], prefix: str = "/"
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _views(pattern.url_patterns, path)
        else:
            yield path, pattern.callback


def _is_first(path: str, callback: Callable[..., Any]) -> bool:
    try:
        return resolve(path).func is callback
    except Resolver404:
        return True  # a path with parameters cannot be resolved


def _unwrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``view`` without its decorators and partial arguments, as far as possible."""
    with suppress(Exception):  # a view may be any callable, even one whose attributes raise
        view = unwrap(view)
        while isinstance(view, partial):
            view = unwrap(view.func)
    return view
