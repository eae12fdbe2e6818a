"""The URLs of a host that includes ours under a prefix."""

from django.urls import include, path

urlpatterns = [path("elsewhere/", include("proxyhealth.urls"))]
