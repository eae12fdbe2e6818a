"""The URL of the metrics: ``include("proxyhealth.metrics.urls")`` replaces ``django_prometheus.urls``."""

from django.urls import path

from proxyhealth.metrics import exposition

# The name is that of django-prometheus, so that existing links still resolve.
urlpatterns = [path("metrics", exposition.metrics, name="prometheus-django-metrics")]
