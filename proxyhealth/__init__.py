"""Health checks of remote workspace proxies, as a reusable Django app."""

__version__ = "0.1.0"
