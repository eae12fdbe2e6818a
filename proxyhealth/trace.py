"""The course of a probe as frozen values: its requests, and the phases of each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Self

from proxyhealth.statuses import Reason, Status
from proxyhealth.texts import clean
from proxyhealth.utils import parse_json, parse_rfc3339, rfc3339

# The names of the phases. A request has those that began, in this order, and one ``connect`` per address.
LOOK_UP = "look_up"
CONNECT = "connect"
TLS = "tls"
FIRST_BYTE = "first_byte"  # from the sent request until the response begins
HEADERS = "headers"
BODY = "body"  # only of the last request: the body of a redirect is not read

MAX_REQUESTS = 5
MAX_PHASES = 16
MAX_TEXT = 500  # characters of an error, a URL, or a line of a request
_MAX_LINES = 20
_MAX_ADDRESS = 64
_MAX_TIME = 1e12  # in microseconds

_STATUSES = {status.value: status for status in Status}
_REASONS = {reason.value: reason for reason in Reason}


class Phase(NamedTuple):
    """A phase of a request. ``address`` is the one that ``connect`` tried, else it is empty."""

    name: str
    seconds: float
    address: str = ""


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request of a probe: the first one, or one that follows a redirect.

    ``sent`` has the request line and the headers as they were sent, except that the query of a redirect,
    which may have a token, is ``…``. It is empty if nothing was sent. ``status_code`` is 0 without a
    response. ``tls_expires_at`` is the end of the certificate that expires first in the chain.
    """

    url: str
    phases: tuple[Phase, ...] = ()
    sent: str = ""
    status_code: int = 0
    tls_version: str = ""
    tls_expires_at: datetime | None = None

    @property
    def address(self) -> str:
        """The address of the last attempt to connect, or an empty string if there was none."""
        return next((phase.address for phase in reversed(self.phases) if phase.address), "")

    @property
    def seconds(self) -> float:
        """The duration of all phases."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True)
class ProbeTrace:
    """The course of one probe. ``checked_at``, ``status``, and ``reason`` are those of its result.

    ``error`` says what ended the probe, in the last phase of the last request. It is empty if a valid report
    was read, also if that report has errors.
    """

    checked_at: datetime
    status: Status
    reason: Reason = Reason.NONE
    error: str = ""
    requests: tuple[RequestTrace, ...] = ()

    @property
    def failed_in(self) -> str:
        """The name of the phase in which the probe failed, or an empty string."""
        phases = self.requests[-1].phases if self.error and self.requests else ()
        return phases[-1].name if phases else ""

    @property
    def seconds(self) -> float:
        """The duration of all requests."""
        return sum(request.seconds for request in self.requests)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return the trace of a text that a probe has made, also one of a later version.

        Raise ``ValueError``, ``LookupError``, ``TypeError``, ``AttributeError`` or ``OverflowError`` if it is
        damaged.
        """
        data = parse_json(text)
        checked_at = parse_rfc3339(data["checked_at"])
        if checked_at is None:
            raise ValueError("it has no time")
        return cls(
            checked_at,
            _STATUSES.get(data.get("status"), Status.UNKNOWN),
            _REASONS.get(data.get("reason"), Reason.NONE),
            clean(data.get("error", ""), MAX_TEXT),
            tuple(map(_request_from_json, data.get("requests", ())[:MAX_REQUESTS])),
        )


def _request_from_json(data: Mapping[str, Any]) -> RequestTrace:
    lines = data.get("sent", "").rstrip().splitlines()[:_MAX_LINES]
    return RequestTrace(
        clean(data.get("url", ""), MAX_TEXT),
        tuple(_phases(data.get("marks", ())[: 3 * MAX_PHASES + 3])),
        "\n".join(clean(line, MAX_TEXT) for line in lines),
        int(data.get("status_code", 0)),
        clean(data.get("tls_version", ""), _MAX_ADDRESS),
        parse_rfc3339(data.get("tls_expires_at")),
    )


def _phases(marks: Sequence[Any]) -> Iterator[Phase]:
    """Yield the phases between marks, each a name, a time in µs, and an address. The last one is the end."""
    places = zip(marks[::3], marks[1::3], marks[2::3], strict=True)
    for (name, begin, address), (_name, end, _address) in pairwise(places):
        if not 0 <= end - begin < _MAX_TIME:
            raise ValueError("a duration is not possible")
        yield Phase(clean(name, _MAX_ADDRESS), (end - begin) / 1e6, clean(address, _MAX_ADDRESS))


_time = lru_cache(maxsize=16)(rfc3339)  # all probes of a round have the same
_encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"), default=_time)


def encode(course: Mapping[str, Any]) -> str:
    """Return the course of a probe as JSON, for :meth:`ProbeTrace.from_json`."""
    return _encoder.encode(course)
