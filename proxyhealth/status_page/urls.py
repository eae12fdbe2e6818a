"""The public status page: ``path("status/", include("proxyhealth.status_page.urls"))``.

Everything responds with 404 unless ``STATUS_PAGE`` is set.
"""

from django.urls import path

from proxyhealth.status_page import views

urlpatterns = [
    path("", views.status, name="proxyhealth-status"),
    path("feed.atom", views.feed, name="proxyhealth-status-feed"),
    path("badge.svg", views.badge, name="proxyhealth-status-badge"),
    path("badge/<str:name>.svg", views.badge_of, name="proxyhealth-status-badge-of"),
]
