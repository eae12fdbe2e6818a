"""The models. Django imports this module, and host projects import the models from it."""

from proxyhealth.models.history import (
    Gap,
    Transition,
    TransitionQuerySet,
    Watch,
)
from proxyhealth.models.notifications import Alarm, Channel, Delivery, Silence
from proxyhealth.models.outages import Outage, OutageQuerySet
from proxyhealth.models.proxies import Confirmed, WorkspaceProxy, WorkspaceProxyQuerySet

__all__ = [
    "Alarm",
    "Channel",
    "Confirmed",
    "Delivery",
    "Gap",
    "Outage",
    "OutageQuerySet",
    "Silence",
    "Transition",
    "TransitionQuerySet",
    "Watch",
    "WorkspaceProxy",
    "WorkspaceProxyQuerySet",
]
