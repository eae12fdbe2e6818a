"""The admin. Django imports this module, which registers the models."""

from proxyhealth.admin import alarms, channels, deliveries, history, outages, proxies, silences

__all__ = ["alarms", "channels", "deliveries", "history", "outages", "proxies", "silences"]
