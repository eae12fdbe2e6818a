"""What the JSON views say: the shapes, and bytes that are made once and sent many times."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.utils.http import http_date, parse_etags

from proxyhealth.conf import Primary
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.utils import rfc3339

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

# What is shorter gains nothing.
_GZIP_FROM = 200
_GZIP_LEVEL = 5


def encode(data: Any) -> bytes:
    # A lone surrogate in one row is no reason to lose all of them.
    return _encoder.encode(data).encode("utf-8", "replace")


def region_json(proxy: Proxy | Primary, healthy: bool) -> dict[str, Any]:
    """What every user may know."""
    return {
        "id": str(proxy.id),
        "name": proxy.name,
        "display_name": proxy.display_name or proxy.name,
        "icon_url": proxy.icon,
        "healthy": healthy,
        "path_app_url": proxy.url,
        "wildcard_hostname": proxy.wildcard_hostname,
    }


def status_json(status: ProxyStatus) -> dict[str, Any]:
    return {
        "status": status.status,
        "reason": status.reason,
        "report": {"errors": status.report.errors, "warnings": status.report.warnings},
        "checked_at": status.checked_at and rfc3339(status.checked_at),
        "latency_ms": _milliseconds(status.latency),
    }


def row_json(proxy: Proxy) -> dict[str, Any]:
    """What is known of the row besides the region."""
    return {
        "created_at": rfc3339(proxy.created_at),
        "updated_at": rfc3339(proxy.updated_at),
        "deleted": proxy.deleted,
        "version": proxy.version,
    }


def snapshot_json(snapshot: Snapshot, stale_reason: str) -> dict[str, Any]:
    return {
        "number": snapshot.number,
        "checked_at": snapshot.checked_at and rfc3339(snapshot.checked_at),
        "duration_ms": _milliseconds(snapshot.duration),
        "stale_at": snapshot.stale_at and rfc3339(snapshot.stale_at),
        "stale": bool(stale_reason),
        "stale_reason": stale_reason,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class Representation:
    """JSON as bytes, plain and compressed, with strong validators.

    The same bytes have the same ``etag`` in every process. ``last_modified`` is the latest of ``moments``.
    """

    def __init__(self, body: bytes, moments: Iterable[datetime | None] = ()) -> None:
        self.body = body
        # Nothing is modified in the future, whatever the clock of who modified it says.
        latest = max((moment for moment in moments if moment), default=None)
        self.last_modified = min(latest, datetime.now(UTC)) if latest else None
        self._hash = blake2b(body, digest_size=16).hexdigest()
        self._lock = threading.Lock()
        self._gzipped: bytes | None = None

    @property
    def gzipped(self) -> bytes:
        with self._lock:
            if self._gzipped is None:
                self._gzipped = gzip.compress(self.body, _GZIP_LEVEL, mtime=0)
            return self._gzipped

    def reuse_or_replace(self, before: Representation) -> Representation:
        """What is to be sent from now on: with the same bytes, ``before``; else this one, as compressed as
        that was, so that nobody has to wait for it."""
        if self._hash == before._hash:
            return before
        if before._gzipped is not None:
            _ = self.gzipped
        return self

    def response(self, request: HttpRequest) -> HttpResponse:
        """200 with the bytes, or 304 if who asks has them."""
        compressed = len(self.body) >= _GZIP_FROM and accepts_gzip(request.headers.get("Accept-Encoding", ""))
        etag = f'"{self._hash}-gzip"' if compressed else f'"{self._hash}"'
        response: HttpResponse
        if self._is_known(request):
            response = HttpResponseNotModified()
        else:
            body = self.gzipped if compressed else self.body
            response = HttpResponse(
                b"" if request.method == "HEAD" else body, content_type="application/json"
            )
            response["Content-Length"] = str(len(body))
            if compressed:
                response["Content-Encoding"] = "gzip"
        response["ETag"] = etag
        if self.last_modified:
            response["Last-Modified"] = http_date(self.last_modified.timestamp())
        response["Cache-Control"] = "private, no-cache"
        response["Vary"] = "Accept-Encoding, Authorization, Cookie"
        return response

    def _is_known(self, request: HttpRequest) -> bool:
        """If-Modified-Since is not looked at: two changes may fall into one of its seconds."""
        known = request.headers.get("If-None-Match")
        if not known:
            return False
        if known.strip() == "*":
            return True
        # Compared weakly: what compresses our answers on their way may have made it a weak one.
        tags = {tag.removeprefix("W/") for tag in parse_etags(known)}
        return f'"{self._hash}"' in tags or f'"{self._hash}-gzip"' in tags


_CODING = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", re.ASCII | re.IGNORECASE)


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding asks for gzip; what cannot be read asks for nothing."""
    wanted = {}
    for part in header.split(","):
        if match := _CODING.fullmatch(part):
            wanted[match[1].lower()] = float(match[2] or 1)
    return wanted.get("gzip", wanted.get("x-gzip", wanted.get("*", 0.0))) > 0
