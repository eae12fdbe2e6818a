"""The panel with the headline on the index of an admin site, and on that of the app."""

from django.contrib import admin

_TEMPLATE = "admin/proxyhealth/index.html"


def add_to(site: admin.AdminSite) -> None:
    """Show the panel on the index of ``site``, unless the site has a template of its own.

    The template extends ``admin/index.html``, whoever provides that, so the order of ``INSTALLED_APPS`` does
    not matter. Django itself finds ``admin/proxyhealth/app_index.html``.
    """
    if site.index_template is None:
        site.index_template = _TEMPLATE
