"""The statuses of a proxy, and the reasons for them."""

import enum


class Status(enum.StrEnum):
    """The health status of a proxy. ``number`` is its value in metrics."""

    OK = "ok"
    UNHEALTHY = "unhealthy"
    UNREACHABLE = "unreachable"
    UNREGISTERED = "unregistered"
    UNKNOWN = "unknown"

    @property
    def number(self) -> int:
        return _NUMBERS[self]


_NUMBERS = {
    Status.UNKNOWN: -3,
    Status.UNREACHABLE: -2,
    Status.UNHEALTHY: -1,
    Status.UNREGISTERED: 0,
    Status.OK: 1,
}


class Reason(enum.StrEnum):
    """The cause of a status. ``ok``, ``unregistered`` and ``unknown`` have ``NONE``, an empty string."""

    NONE = ""
    INVALID_URL = "invalid_url"
    BLOCKED = "blocked"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    STATUS_CODE = "status_code"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    BAD_REPORT = "bad_report"
    REPORT_ERRORS = "report_errors"
    INTERNAL = "internal"
