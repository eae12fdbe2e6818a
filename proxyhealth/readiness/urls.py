"""The URLs for load balancers and Kubernetes: ``path("", include("proxyhealth.readiness.urls"))``."""

from django.urls import path

from proxyhealth.readiness import views

urlpatterns = [
    path("livez", views.livez, name="proxyhealth-livez"),
    path("readyz", views.readyz, name="proxyhealth-readyz"),
]
