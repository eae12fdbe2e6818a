"""The admin. Django imports this module, which registers the models."""

from proxyhealth.admin import channels, deliveries, history, outages, proxies

__all__ = ["channels", "deliveries", "history", "outages", "proxies"]
