"""``/metrics``: the series of proxyhealth, and those of django-prometheus, from whichever process answers."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.utils.cache import add_never_cache_headers
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from proxyhealth import access
from proxyhealth.conf import conf
from proxyhealth.exceptions import APIError
from proxyhealth.metrics.collector import ProxyGauge, collector
from proxyhealth.snapshot import ProxyStatus

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@access.endpoint("GET", public=lambda: True)
def metrics(request: HttpRequest) -> HttpResponse:
    """Everything, as text; to who has ``METRICS_TOKEN``, if there is one."""
    _require_token(request)
    response = HttpResponse(exposition(_collect()), content_type=CONTENT_TYPE)
    add_never_cache_headers(response)
    return response


def _require_token(request: HttpRequest) -> None:
    token = conf.METRICS_TOKEN
    if not token:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), token.encode()):
        raise APIError(
            401,
            "Not allowed.",
            "Send the token as Authorization: Bearer <token>.",
            WWW_Authenticate='Bearer realm="metrics"',
        )


def _collect() -> Iterable[Metric]:
    # As prometheus_client decides whether it counts in files, for all processes of a host together.
    if not any(name in os.environ for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")):
        return REGISTRY.collect()
    # In its files there is only what is counted; ours is not.
    return chain(collector.collect(), _collect_files())


def _collect_files() -> Iterable[Metric]:
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return list(registry.collect())
    except Exception:
        # A process that was killed may leave half a file; that is no reason to know nothing of the proxies.
        logger.exception("the files in PROMETHEUS_MULTIPROC_DIR cannot be read: their metrics are left out")
        return []


def exposition(metrics: Iterable[Metric]) -> bytes:
    """The text of all ``metrics``, as prometheus_client makes it, but quicker for our own."""
    others = []
    texts = []
    for metric in metrics:
        if isinstance(metric, ProxyGauge):
            texts.append(_text(metric))
        else:
            others.append(metric)
    return b"".join([generate_latest(_Collected(others)), *texts])


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class _Text(NamedTuple):
    statuses: Mapping[UUID, ProxyStatus]
    columns: list[list[Any]]
    text: bytes


_texts: dict[str, _Text] = {}  # by the names of the gauges


def _text(gauge: ProxyGauge) -> bytes:
    """The text of ``gauge``, made anew only if it is another one than that of the last scrape.

    A round changes how long the probes took, and nearly never what the proxies are called.
    """
    known = _texts.get(gauge.name)
    if known and known.statuses is gauge.fleet.statuses:
        return known.text
    text = known.text if known and known.columns == gauge.columns else gauge.text().encode()
    _texts[gauge.name] = _Text(gauge.fleet.statuses, gauge.columns, text)
    return text
