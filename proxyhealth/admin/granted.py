"""The permissions of our pages."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from proxyhealth import access


class GrantedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # generic for type checkers only
    """An admin that grants only what ``has_perm()`` answers with True.

    The coroutine of an ``async def has_perm()`` of a custom user would let everyone in.
    """

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.is_granted(super().has_view_permission(request, obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return access.is_granted(super().has_add_permission(request))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.is_granted(super().has_change_permission(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return access.is_granted(super().has_delete_permission(request, obj))
