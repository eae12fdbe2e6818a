"""The exit statuses of a command, and the errors that end it."""

from django.core.management.base import CommandError

from proxyhealth.texts import clean, without_passwords

FINE = 0
BAD = 1  # a proxy is down, or the statuses are stale
UNCERTAIN = 2  # it could not be told, or done
INTERRUPTED = 130  # by Ctrl-C
TERMINATED = 143  # by SIGTERM

_MAX_ERROR = 1_000


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def failure(message: str) -> CommandError:
    """Return the error that ends a command which could not tell, or do, what it was asked for."""
    return CommandError(clean(without_passwords(message), _MAX_ERROR), returncode=UNCERTAIN)
