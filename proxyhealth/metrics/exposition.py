"""The view ``/metrics``: the series of proxyhealth and of django-prometheus."""

import logging
import os
import secrets
from collections.abc import Iterable
from itertools import chain

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

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@access.endpoint("GET", public=lambda: True)
def metrics(request: HttpRequest) -> HttpResponse:
    """Return all series as text. Require the bearer token ``METRICS_TOKEN``, unless that is empty."""
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
    # The same condition as in prometheus_client. With it, the processes of a host count in shared files.
    if not any(name in os.environ for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")):
        return REGISTRY.collect()
    # The files do not contain the series of custom collectors.
    return chain(collector.collect(), _collect_files())


def _collect_files() -> Iterable[Metric]:
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return list(registry.collect())
    except Exception:
        # A killed process may leave an incomplete file. The metrics of the proxies do not depend on it.
        logger.exception("cannot read the files in PROMETHEUS_MULTIPROC_DIR: omitting their metrics")
        return []


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Return the text of ``metrics`` as prometheus_client formats it."""
    texts: list[bytes] = []
    others: list[Metric] = []
    for metric in metrics:
        if isinstance(metric, ProxyGauge):
            texts.append(metric.text())
        else:
            others.append(metric)
    return b"".join([generate_latest(_MetricList(others)), *texts])


class _MetricList(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics
