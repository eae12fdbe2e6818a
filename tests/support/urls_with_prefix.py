"""A host that has our URLs somewhere else."""

from django.urls import include, path

urlpatterns = [path("elsewhere/", include("proxyhealth.urls"))]
