"""Knows which remote workspace proxies are usable."""

__version__ = "0.1.0"
