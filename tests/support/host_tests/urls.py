from django.contrib import admin
from django.http import HttpResponse
from django.template import engines
from django.urls import include, path


def home(request):
    template = "{% load proxyhealth %}{% proxy_badge 'paris' %}"
    headers = {"Content-Security-Policy": "default-src 'self'"}
    return HttpResponse(engines["django"].from_string(template).render(), headers=headers)


urlpatterns = [
    path("admin/", admin.site.urls),
    path("home/", home),
    path("", include("proxyhealth.urls")),
    path("", include("proxyhealth.metrics.urls")),
]
