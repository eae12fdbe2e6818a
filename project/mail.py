"""The settings of Django for mail, from one URL."""

from typing import Any
from urllib.parse import urlsplit

import django
from django.core.exceptions import ImproperlyConfigured
from environ import Env

SCHEMES = ("smtp", "smtp+tls", "smtp+ssl", "consolemail")

# A mail server that hangs must not block a process. In seconds.
TIMEOUT = 10

_PORTS = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}


def mail_settings(url: str) -> dict[str, Any]:
    """Return the settings for this URL: ``MAILERS`` since Django 6.1, ``EMAIL_HOST`` and others before.

    Raise ``ImproperlyConfigured`` for an option after a ``?``, which would have no effect.
    """
    if urlsplit(url).query:
        raise ImproperlyConfigured("EMAIL_URL must not contain a ?. Percent-encode it in a password.")
    config: dict[str, Any] = Env.email_url_config(url)
    backend = config["EMAIL_BACKEND"]
    scheme = url.partition(":")[0]
    options: dict[str, Any] = {}
    if scheme in _PORTS:
        options = {
            "host": config["EMAIL_HOST"] or "localhost",
            "port": config["EMAIL_PORT"] or _PORTS[scheme],
            "username": config["EMAIL_HOST_USER"] or "",
            "password": config["EMAIL_HOST_PASSWORD"] or "",
            "use_tls": scheme == "smtp+tls",
            "use_ssl": scheme == "smtp+ssl",
            "timeout": TIMEOUT,
        }
    if django.VERSION >= (6, 1):
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": options}}}
    names = {"username": "HOST_USER", "password": "HOST_PASSWORD"}
    settings = {f"EMAIL_{names.get(name, name.upper())}": value for name, value in options.items()}
    return {"EMAIL_BACKEND": backend, **settings}
