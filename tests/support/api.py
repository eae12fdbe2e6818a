"""Clients of the JSON views, and the check of an error response."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client

LIST = "/api/v2/workspaceproxies"
REGIONS = "/api/v2/regions"


def signed_in(*permissions: str, **options: Any) -> Client:
    """Return a client with a new user that has these permissions (code names)."""
    user = User.objects.create_user(f"user{User.objects.count()}")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


def assert_error(response: HttpResponse, status: int, message: str, detail: str | None = None) -> None:
    """Assert the status, the JSON shape and the texts of an error that caches do not store."""
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    body = response.json()
    assert sorted(body) == ["detail", "message"]
    assert body["message"] == message
    if detail is not None:
        assert body["detail"] == detail
