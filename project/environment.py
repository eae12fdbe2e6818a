"""The environment variables of the project, read strictly: a typo must not weaken a deployment."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.checks.security.base import (
    SECRET_KEY_INSECURE_PREFIX,
    SECRET_KEY_MIN_LENGTH,
    SECRET_KEY_MIN_UNIQUE_CHARACTERS,
)
from django.core.exceptions import ImproperlyConfigured
from environ.fileaware_mapping import FileAwareMapping

LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

NEW_KEY = "Generate one: python -c 'import secrets; print(secrets.token_urlsafe(48))'"

# Of the schemes that a URL may have, those that a message names.
_EXAMPLES = ("sqlite", "postgres", "redis", "rediss", "smtp", "smtp+tls", "smtp+ssl")

_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class _Variables(FileAwareMapping):  # type: ignore[misc]
    """The variables that are not empty. ``NAME_FILE`` is the path of a file with the value of ``NAME``."""

    def __getitem__(self, name: str) -> str:
        try:
            value: str = super().__getitem__(name).strip()  # a file ends with a line feed
        except OSError as error:
            raise ImproperlyConfigured(
                f"{name}_FILE: {error.filename} cannot be read ({error.strerror})."
            ) from None
        if not value:
            raise KeyError(name)
        return value


class Environment:
    """The environment, with errors that name the variable and say what to do."""

    def __init__(self) -> None:
        self._variables = _Variables()

    def text(self, name: str, default: str = "") -> str:
        return str(self._variables.get(name, default))

    def boolean(self, name: str, default: bool = False) -> bool:
        text = self.text(name, str(default))
        if text.lower() not in _BOOLEANS:
            raise ImproperlyConfigured(f"{name} must be true or false, not {text!r}.")
        return _BOOLEANS[text.lower()]

    def number(self, name: str, default: float) -> float:
        """Return a number of the type of ``default``."""
        text = self.text(name, str(default))
        try:
            return type(default)(text)
        except ValueError:
            kind = "whole number" if isinstance(default, int) else "number"
            raise ImproperlyConfigured(f"{name} must be a {kind}, not {text!r}.") from None

    def items(self, name: str, default: Sequence[str] = ()) -> list[str]:
        """Return the parts between commas, without spaces around them."""
        parts = self.text(name, ",".join(default)).split(",")
        return [part.strip() for part in parts if part.strip()]

    def choice(self, name: str, *choices: str) -> str:
        """Return one of ``choices``, by default the first."""
        text = self.text(name, choices[0])
        if text not in choices:
            raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {text!r}.")
        return text

    def file(self, name: str) -> str:
        """Return the path of a file that exists, or an empty string."""
        path = self.text(name)
        if path and not Path(path).is_file():
            raise ImproperlyConfigured(f"{name}: there is no file {path!r}.")
        return path

    def url(self, name: str, schemes: Collection[str], default: str) -> str:
        """Return a URL with one of these schemes. No message repeats a part of it: it has a password."""
        url = self.text(name, default)
        if url.partition(":")[0] not in schemes:
            examples = " or ".join(f"{scheme}://" for scheme in schemes if scheme in _EXAMPLES)
            raise ImproperlyConfigured(f"{name} must begin with a scheme like {examples}")
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise ImproperlyConfigured(
                f"{name} cannot be read. Percent-encode special characters in its user and password."
            ) from None
        return url


def require_safe(secret_key: str, debug: bool, allowed_hosts: list[str]) -> None:
    """Raise ``ImproperlyConfigured`` for a value with which the site must not be open to others."""
    if debug:
        if remote := [host for host in allowed_hosts if host not in LOCAL_HOSTS]:
            raise ImproperlyConfigured(
                "DEBUG shows the code and the settings to every visitor. Remove it, or remove "
                f"{', '.join(remote)} from ALLOWED_HOSTS."
            )
        return
    if not secret_key:
        raise ImproperlyConfigured(f"SECRET_KEY is not set. {NEW_KEY}")
    if (
        len(secret_key) < SECRET_KEY_MIN_LENGTH
        or len(set(secret_key)) < SECRET_KEY_MIN_UNIQUE_CHARACTERS
        or secret_key.startswith(SECRET_KEY_INSECURE_PREFIX)
    ):
        raise ImproperlyConfigured(
            f"SECRET_KEY can be guessed: it needs {SECRET_KEY_MIN_LENGTH} random characters. {NEW_KEY}"
        )
    if not allowed_hosts:
        raise ImproperlyConfigured(
            "ALLOWED_HOSTS is not set. Set it to the host names of the site, separated by commas. "
            "On your own machine, set DEBUG=true instead."
        )
    if "*" in allowed_hosts:
        raise ImproperlyConfigured(
            "ALLOWED_HOSTS must not contain *: anyone could put another site into links of this one. "
            "Name the hosts."
        )


def redis_tls(url: str, ca_file: str) -> dict[str, Any]:
    """Return the TLS options of redis-py for a ``rediss://`` URL, or none."""
    if url.startswith("rediss://"):
        options = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return {**options, "ssl_ca_certs": ca_file} if ca_file else options
    if ca_file:
        raise ImproperlyConfigured("REDIS_CA_FILE has no effect: REDIS_URL must begin with rediss://")
    return {}
