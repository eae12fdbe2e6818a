"""All exceptions of the app."""

from __future__ import annotations

import http.client

from proxyhealth.statuses import Reason, Status


class StoreError(Exception):
    """A failure of the cache; the message says why it cannot be used."""


class Superseded(StoreError):
    """A commit that came too late: another round took the lease over, or a later one was committed."""


class OutdatedRound(Exception):
    """A round that is older than the one in the document."""


class RoundFailed(Exception):
    """A round, or the check of a few proxies, that failed. The snapshot is as it was."""


class ProberOffline(RoundFailed):
    """A round in which proxies seem dead, but no canary answers: this machine is cut off."""


class BadReport(Exception):
    """A response body that is not a health report.

    ``reason`` is ``not_json`` or ``bad_report``. ``beginning`` holds the first characters of a body that is
    not JSON.
    """

    def __init__(self, reason: Reason, message: str, beginning: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.beginning = beginning


class ProbeFailed(Exception):
    """The end of a probe that got no report. The message is for the operator."""

    def __init__(self, status: Status, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class AddressBlocked(Exception):
    """A host whose addresses are all refused by the address policy."""


class TooManyBytes(http.client.HTTPException):
    """More bytes from a peer than headers, or a report, can need."""


class APIError(Exception):
    """An error response: its status code, message, detail, and additional headers."""

    def __init__(self, status: int, message: str, detail: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.detail = detail
        self.headers = headers


class InvalidQuery(Exception):
    """A query parameter that is unknown or has an invalid value. The message names the valid ones."""
