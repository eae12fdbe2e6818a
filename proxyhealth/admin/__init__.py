"""The admin. Django imports this module, which registers the models."""

from proxyhealth.admin import history, proxies

__all__ = ["history", "proxies"]
