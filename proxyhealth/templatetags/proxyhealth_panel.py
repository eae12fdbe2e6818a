"""``{% load proxyhealth_panel %}``: the headline on other pages of the admin."""

import logging
from datetime import UTC, datetime
from typing import Any

from django import template
from django.template import Context
from django.urls import reverse

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.overview.headline import headline

logger = logging.getLogger(__name__)

register = template.Library()


@register.inclusion_tag("admin/proxyhealth/panel.html", takes_context=True)
def proxyhealth_panel(context: Context) -> dict[str, Any]:
    """Show the headline to users who may view the proxies. Query only if no status is known. Never fail."""
    try:
        if not _may_view(context):
            return {}
        snapshot = health.snapshot()
        statuses = list(snapshot.statuses.values())
        if not statuses:  # of how many proxies nothing is known
            statuses = health.statuses_of(WorkspaceProxy.objects.primary().active(), snapshot)
        app = context["request"].current_app
        return {
            "headline": headline(snapshot, statuses, datetime.now(UTC)),
            "url": reverse("admin:proxyhealth_workspaceproxy_health", current_app=app),
        }
    except Exception:  # the index is the way to all other pages
        logger.exception("the panel of the admin's index cannot be shown")
        return {}


def _may_view(context: Context) -> bool:
    """Return True if this admin site shows the proxies to the user: it knows that for its list of apps."""
    models = [model for app in context.get("available_apps") or () for model in app["models"]]
    return any(model["model"] is WorkspaceProxy and model["perms"].get("view") for model in models)
