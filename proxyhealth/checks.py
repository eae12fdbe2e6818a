"""System checks: what is wrong with the settings, before it goes wrong in production."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import unwrap
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve
from django.utils.module_loading import import_string
from django_prometheus.exports import ExportToDjangoView

from proxyhealth.conf import NAMES, conf
from proxyhealth.metrics import exposition

HINTS = {
    "INTERVAL": "Seconds between two rounds, for example 60. 0 or less means 60.",
    "TIMEOUT": "Seconds that a whole probe may take, for example 5.",
    "CONCURRENCY": "How many probes may run at once in a process, for example 512.",
    "SHARD_SIZE": "How many proxies one task of a round takes, for example 1000.",
    "CACHE": "The alias, in CACHES, of the Redis cache that is to hold the snapshot.",
    "READ_INTERVAL": "Seconds between two looks for a newer snapshot in a process, for example 0.5.",
    "STALE_AFTER": "Seconds without a full round, for example 180, or None for three intervals.",
    "CA_BUNDLE": "The path of a PEM file with the certificates of your own authorities, or empty.",
    "TLS_EXPIRY_WARNING": "Days before the end of a certificate, for example 14; 0 for no warning.",
    "ADDRESS_DENY": "A list of networks as strings, for example ['169.254.0.0/16'].",
    "ADDRESS_ALLOW": "A list of networks as strings; empty allows all that is not denied.",
    "CANARY_URLS": "A list of URLs of servers that always answer, such as ['https://example.com/'].",
    "METRICS_NAMESPACE": "A word for the front of all metrics' names, for example 'coderd', or empty.",
    "PRIMARY": "A dictionary with the 'url' of the control plane, and perhaps an 'id', a 'display_name', "
    "an 'icon' and a 'wildcard_hostname'; or None.",
    "PUBLIC_REGIONS": "True to show the regions to everybody; False for those who are signed in.",
    "AUTHENTICATE": "The dotted path of a function that takes a request and returns its user; None for "
    "Django's session.",
    "METRICS_TOKEN": "A long random text, as secrets.token_urlsafe() makes it; empty for open metrics.",
}

IDS = {name: f"proxyhealth.E{number:03}" for number, name in enumerate(HINTS, start=10)}


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Everything about ``PROXYHEALTH``: the ids are listed in the README."""
    options = getattr(settings, "PROXYHEALTH", {})
    if not isinstance(options, Mapping):
        return [
            Error(
                "PROXYHEALTH must be a dictionary.",
                hint="For example PROXYHEALTH = {'INTERVAL': 60}.",
                id="proxyhealth.E001",
            )
        ]
    messages: list[CheckMessage] = []
    for name in options:
        if name not in NAMES:
            close = difflib.get_close_matches(str(name).upper(), NAMES, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(NAMES)}."
            messages.append(Error(f"PROXYHEALTH has no {name!r}.", hint=hint, id="proxyhealth.E002"))
    for name in NAMES:
        try:
            getattr(conf, name)
        except ImproperlyConfigured as error:
            # Other settings may be built on this one; it alone is named.
            if repr(name) in str(error):
                messages.append(Error(str(error), hint=HINTS[name], id=IDS[name]))
    if not messages:
        messages = [*_check_cache(), *_check_stale_after(), *_check_metrics()]
    return messages


def _check_cache() -> list[CheckMessage]:
    backend = str(settings.CACHES[conf.CACHE].get("BACKEND", ""))
    try:
        kinds: tuple[type, ...] = import_string(backend).__mro__
    except ImportError:
        return []  # Django says so itself
    if any("redis" in kind.__module__ for kind in kinds):
        return []
    return [
        Error(
            f"The cache {conf.CACHE!r} is {backend}: the workers and the web servers cannot "
            "share a snapshot in it.",
            hint="Use django.core.cache.backends.redis.RedisCache, or name another alias "
            "with PROXYHEALTH['CACHE'].",
            id="proxyhealth.E003",
        )
    ]


def _check_stale_after() -> list[CheckMessage]:
    if conf.STALE_AFTER > conf.INTERVAL:
        return []
    return [
        Warning(
            "PROXYHEALTH['STALE_AFTER'] is not longer than INTERVAL: every snapshot is stale before "
            "the next round can end.",
            hint="Leave STALE_AFTER out for three intervals.",
            id="proxyhealth.W001",
        )
    ]


def _check_metrics() -> list[CheckMessage]:
    ours, theirs = _is_reached(exposition.metrics), _is_reached(ExportToDjangoView)
    messages: list[CheckMessage] = []
    hint = "Include 'proxyhealth.metrics.urls' in place of 'django_prometheus.urls'."
    # Whether it is set does not matter: it is for the web server, and this may run anywhere.
    if theirs and not ours:
        messages.append(
            Warning(
                "With PROMETHEUS_MULTIPROC_DIR, django-prometheus' own view leaves out the metrics of "
                "proxyhealth, and no view of yours has them.",
                hint=hint,
                id="proxyhealth.W002",
            )
        )
    ports = ("PROMETHEUS_METRICS_EXPORT_PORT", "PROMETHEUS_METRICS_EXPORT_PORT_RANGE")
    port = next((name for name in ports if getattr(settings, name, None)), None)
    if conf.METRICS_TOKEN and (theirs or port):
        where = "django-prometheus' own view" if theirs else f"the port of {port}"
        messages.append(
            Warning(
                f"PROXYHEALTH['METRICS_TOKEN'] is set, and {where} does not ask for it.",
                hint=hint if theirs else "Keep others from that port, or do without it.",
                id="proxyhealth.W003",
            )
        )
    return messages


def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """What is right for a demo, and wrong for a site that others can reach."""
    try:
        token = conf.METRICS_TOKEN
    except ImproperlyConfigured:
        return []  # an error of its own
    if token or not _is_reached(exposition.metrics):
        return []
    return [
        Warning(
            "The metrics are open to whoever reaches them, with the names and hosts of all proxies.",
            hint="Set PROXYHEALTH['METRICS_TOKEN'], or silence this if your web server keeps others out.",
            id="proxyhealth.W004",
        )
    ]


def _is_reached(view: Callable[..., Any]) -> bool:
    """Whether a request can get to ``view``: of two with the same path, only to the first."""
    wanted = _unwrapped(view)
    try:
        return any(
            _unwrapped(callback) is wanted and _is_first(path, callback)
            for path, callback in _views(get_resolver().url_patterns)
        )
    except Exception:
        return False  # these URLs cannot be used, and Django says why


def _views(
    patterns: Iterable[URLPattern | URLResolver], before: str = "/"
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for pattern in patterns:
        path = before + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _views(pattern.url_patterns, path)
        else:
            yield path, pattern.callback


def _is_first(path: str, callback: Callable[..., Any]) -> bool:
    try:
        return resolve(path).func is callback
    except Resolver404:
        return True  # it has parameters, so nobody can tell


def _unwrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """``view`` without decorators and arguments, as far as that can be seen."""
    with suppress(Exception):  # there are views that are objects, of any kind
        view = unwrap(view)
        while isinstance(view, partial):
            view = unwrap(view.func)
    return view
