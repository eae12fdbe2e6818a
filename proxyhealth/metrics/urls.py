"""``path("", include("proxyhealth.metrics.urls"))``, in place of ``django_prometheus.urls``."""

from django.urls import path

from proxyhealth.metrics import exposition

# The name is that of django-prometheus, so that existing links still resolve.
urlpatterns = [path("metrics", exposition.metrics, name="prometheus-django-metrics")]
