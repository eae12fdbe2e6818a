"""The environment of a process of ``project/`` that serves plain HTTP on this machine."""

PLAIN_SITE = {
    "SECRET_KEY": "a key for tests, which is long enough to be accepted: 0123456789",
    "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
    "HTTPS": "false",
}
