"""The JSON views at the paths that clients expect: ``path("", include("proxyhealth.urls"))``."""

from django.urls import path

from proxyhealth.api import views

app_name = "proxyhealth"

urlpatterns = [
    path("api/v2/workspaceproxies", views.proxies, name="proxies"),
    # No proxy can have this name: names contain no dots.
    path("api/v2/workspaceproxies/openapi.json", views.openapi, name="openapi"),
    # This name is reserved.
    path("api/v2/workspaceproxies/outages", views.outages, name="outages"),
    path("api/v2/workspaceproxies/<str:id_or_name>", views.proxy, name="proxy"),
    path("api/v2/workspaceproxies/<str:id_or_name>/check", views.check, name="check"),
    path("api/v2/workspaceproxies/<str:id_or_name>/history", views.history, name="history"),
    path("api/v2/regions", views.regions, name="regions"),
]
