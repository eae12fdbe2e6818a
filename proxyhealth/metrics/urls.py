"""``path("", include("proxyhealth.metrics.urls"))``, in place of ``django_prometheus.urls``."""

from django.urls import path

from proxyhealth.metrics import exposition

# Who links to the metrics does so by the name that django-prometheus gave them.
urlpatterns = [path("metrics", exposition.metrics, name="prometheus-django-metrics")]
