"""Clients of the JSON views, and what their errors look like."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client

LIST = "/api/v2/workspaceproxies"
REGIONS = "/api/v2/regions"


def signed_in(*permissions: str, **options: Any) -> Client:
    """A client of a new user, who has these permissions, by code name."""
    user = User.objects.create_user(f"user{User.objects.count()}")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


def assert_error(response: HttpResponse, status: int, message: str, detail: str | None = None) -> None:
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    body = response.json()
    assert sorted(body) == ["detail", "message"]
    assert body["message"] == message
    if detail is not None:
        assert body["detail"] == detail
