"""Who may see and do what, and how refusals look: JSON, never a page or a redirect."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.db import Error as DatabaseError
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.cache import add_never_cache_headers
from django.utils.decorators import decorator_from_middleware
from django.views.decorators.csrf import csrf_exempt

from proxyhealth.conf import conf
from proxyhealth.exceptions import APIError

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]


class Authenticated(NamedTuple):
    """What an ``AUTHENTICATE`` function may return instead of a user, to vouch for the request.

    ``csrf_exempt`` says that no browser sends by itself what identified the user, as it does with cookies.
    """

    user: Any
    csrf_exempt: bool = False


def message(status: int, words: str, detail: str = "", **headers: str) -> HttpResponse:
    """An answer that is only words; nobody keeps it."""
    response = JsonResponse({"message": words, "detail": detail}, status=status)
    add_never_cache_headers(response)
    for name, value in headers.items():
        response[name.replace("_", "-")] = value
    return response


class _Csrf(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return message(403, "CSRF verification failed.", reason)


_csrf_protect = decorator_from_middleware(_Csrf)


def endpoint(
    method: str, permission: str = "", *, public: Callable[[], bool] = lambda: False
) -> Callable[[View], View]:
    """A view of one method, for who is signed in and has ``permission``, or for all if it is ``public``.

    An :class:`APIError` that it raises, or an error of the database, is an answer too; and so is a query or a
    body that Django does not take apart.
    """
    allowed = ("GET", "HEAD") if method == "GET" else (method,)

    def decorate(view: View) -> View:
        protected = _csrf_protect(view)

        @functools.wraps(view)
        def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                if request.method not in allowed:
                    names = ", ".join(allowed)
                    raise APIError(405, "Method not allowed.", f"Allowed: {names}.", Allow=names)
                exempt = method == "GET"
                if not public():
                    who = _admitted(request, permission)
                    exempt = exempt or who.csrf_exempt
                return (view if exempt else protected)(request, *args, **kwargs)
            except APIError as refused:
                return message(refused.status, refused.message, refused.detail, **refused.headers)
            except (BadRequest, MultiPartParserError, SuspiciousOperation) as error:
                return message(400, "Bad request.", str(error))
            except DatabaseError:
                logger.exception("the database cannot be used")
                return message(503, "Not available.", "The database cannot be used now.")

        # A transaction around it would fail where no answer of ours is possible, and show old rows.
        for alias in connections:
            transaction.non_atomic_requests(alias)(wrapper)
        # Exempt from the host's own middlewares only, whose refusals are pages and redirects.
        return csrf_exempt(login_not_required(wrapper))

    return decorate


def _admitted(request: HttpRequest, permission: str) -> Authenticated:
    """Whose request it is, if they may do what they ask for; raises ``APIError``.

    Users may be lazy, and their session or their permissions be kept where nobody answers: whatever goes
    wrong lets nobody in.
    """
    try:
        who = _identify(request)
        _require(who.user, permission)
    except (APIError, DatabaseError):
        raise
    except PermissionDenied as error:
        raise APIError(403, "Not allowed.", str(error)) from None
    except Exception:
        logger.exception("nobody can tell whose request it is, or what they may")
        raise APIError(500, "Not authenticated.", "The server's log says why.") from None
    return who


def _identify(request: HttpRequest) -> Authenticated:
    """Whose request it is, by the host's function or by Django's session."""
    authenticate = conf.AUTHENTICATE
    # There is no user without the authentication middleware.
    who = authenticate(request) if authenticate else getattr(request, "user", None)
    return who if isinstance(who, Authenticated) else Authenticated(who)


def _require(user: Any, permission: str) -> None:
    # A method of this name, as users of old have it, says nothing.
    if getattr(user, "is_authenticated", False) is not True or not getattr(user, "is_active", True):
        if conf.AUTHENTICATE:
            raise APIError(401, "Not signed in.", "The request does not say validly whose it is.")
        detail = "Sign in and send the session's cookie."
        raise APIError(401, "Not signed in.", detail, WWW_Authenticate='Session realm="proxyhealth"')
    if permission and not user.has_perm(permission):
        raise APIError(403, "Not allowed.", f"This needs the permission {permission}.")
