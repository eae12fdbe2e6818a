"""All exceptions of the app."""

import http.client

from proxyhealth.statuses import Reason, Status


class StoreError(Exception):
    """A failure of the cache. The message says why the cache cannot be used."""


class StoreRefused(StoreError):
    """An error reply of the cache: the server responds, but refuses the command or the script."""


class Superseded(StoreError):
    """A commit that came too late: another round took over the lease, or a later round was committed."""


class TokenTooLow(StoreError):
    """A token below those of the history, because the clock of a new server is behind."""

    def __init__(self, last_token: int) -> None:
        super().__init__("the clock of Redis is behind the history; the next round counts on from there")
        self.last_token = last_token


class UnusableSnapshot(StoreError):
    """A document that a check must not replace: it is damaged, or has another format."""


class ForeignSnapshot(StoreError):
    """A snapshot of another deployment, which uses the same keys of the cache."""


class HistoryUnavailable(Exception):
    """A failure of the database that holds the history. The message says why it cannot be used."""


class DeliveryFailed(Exception):
    """A message that the other side of a channel has not accepted. The text has no secret.

    ``retry_after`` is the pause in seconds that the other side demands. ``is_final`` is True if it will never
    accept a message again.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_final = is_final


class RoundFailed(Exception):
    """A failed round or check. A round changed no status, except as ``health.force_update()`` describes."""


class ProberOffline(RoundFailed):
    """A round with unreachable proxies and canaries: this machine has no network."""


class BadReport(Exception):
    """A response body that is not a health report.

    ``reason`` is ``not_json`` or ``bad_report``. ``beginning`` has the first bytes of the body.
    """

    def __init__(self, reason: Reason, message: str, beginning: bytes = b"") -> None:
        super().__init__(message)
        self.reason = reason
        self.beginning = beginning


class ProbeFailed(Exception):
    """A probe that received no report. The message is for operators."""

    def __init__(self, status: Status, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class AddressBlocked(Exception):
    """A host without an address that the address policy permits."""


class TooManyBytes(http.client.HTTPException):
    """A response with more bytes than the headers or the body of a report may have."""


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
