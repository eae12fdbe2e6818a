import os

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path

from project import views
from project.mailbox import FOLDER
from proxyhealth import access

urlpatterns = [
    path("", views.home, name="home"),
    path("regions/", views.regions, name="regions"),
    path("latency-check", views.latency_check, name="latency-check"),
    path("login/", access.page(LoginView.as_view()), name="login"),
    path("logout/", access.page(LogoutView.as_view()), name="logout"),
    path("admin/", admin.site.urls),
    path("", include("proxyhealth.urls")),
    path("", include("proxyhealth.metrics.urls")),
    path("", include("proxyhealth.readiness.urls")),
    path("status/", include("proxyhealth.status_page.urls")),
]

if os.environ.get(FOLDER):
    urlpatterns += [
        path("mailbox/", views.mailbox, name="mailbox"),
        path("mailbox/<int:id>/", views.mail_as_html, name="mail-as-html"),
    ]
