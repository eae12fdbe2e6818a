"""Authentication, permissions and JSON errors of the views."""

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
    """The user of a request. An ``AUTHENTICATE`` function may return it instead of a plain user.

    Set ``csrf_exempt`` only if browsers do not send the credentials by themselves, as they do with cookies.
    """

    user: Any
    csrf_exempt: bool = False


def message(status: int, text: str, detail: str = "", **headers: str) -> HttpResponse:
    """Return ``{"message": text, "detail": detail}`` as a response that caches do not store."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    response = JsonResponse({"message": text, "detail": detail}, status=status, headers=fields)
    add_never_cache_headers(response)
    return response


class _Csrf(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return message(403, "CSRF verification failed.", reason)


_csrf_protect = decorator_from_middleware(_Csrf)


def endpoint(
    method: str, permission: str = "", *, public: Callable[[], bool] = lambda: False
) -> Callable[[View], View]:
    """Return a decorator for a view of one HTTP method.

    Unless ``public()`` is true, the request needs an active user with ``permission``. All errors are JSON,
    never pages or redirects.
    """
    methods = ("GET", "HEAD") if method == "GET" else (method,)

    def decorate(view: View) -> View:
        protected_view = _csrf_protect(view)

        @functools.wraps(view)
        def authorized(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in methods:
                names = ", ".join(methods)
                raise APIError(405, "Method not allowed.", f"Allowed methods: {names}.", Allow=names)
            exempt = method == "GET"
            if not public():
                caller = _authorize(request, permission)
                exempt = exempt or caller.csrf_exempt
            return (view if exempt else protected_view)(request, *args, **kwargs)

        wrapper = _with_json_errors(authorized)
        # With ATOMIC_REQUESTS, a request would fail before its view if the database is down.
        for alias in connections:
            transaction.non_atomic_requests(alias)(wrapper)
        # The project's own middlewares would respond with pages and redirects.
        return csrf_exempt(login_not_required(wrapper))

    return decorate


def _with_json_errors(view: View) -> View:
    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except APIError as error:
            return message(error.status, error.message, error.detail, **error.headers)
        except (BadRequest, MultiPartParserError, SuspiciousOperation) as error:
            return message(400, "Bad request.", str(error))
        except DatabaseError:
            logger.exception("cannot respond to a request: the database failed")
            return message(503, "Not available.", "The database is not available. Try again later.")

    return wrapper


def _authorize(request: HttpRequest, permission: str) -> Authenticated:
    """Return the user of ``request``. Raise ``APIError`` unless the user is active and has ``permission``."""
    try:
        authenticate = conf.AUTHENTICATE
        # Without AuthenticationMiddleware, requests have no user.
        result = authenticate(request) if authenticate else getattr(request, "user", None)
        caller = result if isinstance(result, Authenticated) else Authenticated(result)
        _require_permission(caller.user, permission)
    except (APIError, DatabaseError):
        raise
    except PermissionDenied as error:
        raise APIError(403, "Not allowed.", str(error)) from None
    except Exception:
        # Lazy users and permission backends may fail at any of these steps.
        logger.exception("cannot authenticate a request")
        raise APIError(500, "Not authenticated.", "Authentication failed. See the server log.") from None
    return caller


def _require_permission(user: Any, permission: str) -> None:
    # "is True", because in old user classes is_authenticated is a method, which is always truthy.
    if getattr(user, "is_authenticated", False) is not True or not getattr(user, "is_active", True):
        if conf.AUTHENTICATE:
            raise APIError(401, "Not signed in.", "Send valid credentials with the request.")
        detail = "Sign in and send the session cookie."
        raise APIError(401, "Not signed in.", detail, WWW_Authenticate='Session realm="proxyhealth"')
    if permission and not user.has_perm(permission):
        raise APIError(403, "Not allowed.", f"The user needs the permission {permission}.")
