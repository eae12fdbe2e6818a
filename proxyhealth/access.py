"""Authentication, permissions and errors of the views."""

import functools
import logging
from collections.abc import Callable, Coroutine
from inspect import isawaitable, iscoroutine
from typing import Any, NamedTuple, TypeVar

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.template.loader import render_to_string
from django.template.response import SimpleTemplateResponse
from django.utils.cache import add_never_cache_headers
from django.utils.decorators import decorator_from_middleware
from django.utils.functional import LazyObject, empty
from django.views.decorators.csrf import csrf_exempt

from proxyhealth.conf import conf
from proxyhealth.exceptions import APIError

logger = logging.getLogger(__name__)

T = TypeVar("T")
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
    never pages or redirects. Everyone may send OPTIONS.
    """
    methods = ("GET", "HEAD", "OPTIONS") if method == "GET" else (method, "OPTIONS")
    allowed = ", ".join(methods)

    def decorate(view: View) -> View:
        protected_view = _csrf_protect(view)

        @functools.wraps(view)
        def authorized(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method not in methods:
                raise APIError(405, "Method not allowed.", f"Allowed methods: {allowed}.", Allow=allowed)
            if request.method == "OPTIONS":  # a browser sends no credentials with a preflight request
                return HttpResponse(status=204, headers={"Allow": allowed})
            exempt = method == "GET"
            if not public():
                caller = _authorize(request, permission)
                exempt = exempt or caller.csrf_exempt
            return (view if exempt else protected_view)(request, *args, **kwargs)

        wrapper = outside_transactions(_with_json_errors(authorized))
        # The project's own middlewares would respond with pages and redirects.
        return csrf_exempt(login_not_required(wrapper))

    return decorate


def outside_transactions(view: View) -> View:
    """Exempt ``view`` from ATOMIC_REQUESTS, so that it is called even if the database is down."""
    for alias in connections:
        transaction.non_atomic_requests(alias)(view)
    return view


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


def page(view: View) -> View:
    """Wrap ``view`` so that it returns 503, not 500, if the database is down.

    This includes the time in which its template is rendered. Only connection errors count: others, such as
    a missing table, are still 500.
    """

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = _or_unavailable(functools.partial(view, request, *args, **kwargs))
        if isinstance(response, SimpleTemplateResponse):
            # Django renders it after the view, and may only then query the user or the rows.
            response.render = functools.partial(_or_unavailable, response.render)  # type: ignore[assignment]
        return response

    return wrapper


def _or_unavailable(respond: Callable[[], HttpResponseBase]) -> HttpResponseBase:
    try:
        return respond()
    except (OperationalError, InterfaceError):
        logger.exception("cannot respond to a request: the database failed")
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)  # as the exception would have done
    response = HttpResponse(render_to_string("proxyhealth/unavailable.html"), status=503)
    add_never_cache_headers(response)
    return response


def may_see_regions(request: HttpRequest) -> bool:
    """Return True if ``request`` has a user, or if the regions are public. A failed database counts as no."""
    if conf.PUBLIC_REGIONS:
        return True
    try:
        _authorize(request, "")
    except (APIError, DatabaseError):
        return False
    return True


async def amay_see_regions(request: HttpRequest) -> bool:
    """Return what :func:`may_see_regions` returns. Use a thread only if something may be queried."""
    user = getattr(request, "user", None)
    is_lazy = isinstance(user, LazyObject) and user._wrapped is empty  # no code has used it yet
    if conf.PUBLIC_REGIONS or not (conf.AUTHENTICATE or is_lazy):
        return may_see_regions(request)
    return await sync_to_async(may_see_regions)(request)


def _authorize(request: HttpRequest, permission: str) -> Authenticated:
    """Return the user of ``request``. Raise ``APIError`` unless the user is active and has ``permission``."""
    try:
        authenticate = conf.AUTHENTICATE
        # Without AuthenticationMiddleware, requests have no user.
        result = _resolved(authenticate(request)) if authenticate else getattr(request, "user", None)
        caller = result if isinstance(result, Authenticated) else Authenticated(result)
        if isawaitable(caller.user):
            _close(caller.user)
            raise TypeError("AUTHENTICATE must return a user, but its user is an awaitable. Await it first.")
        caller = caller._replace(csrf_exempt=_boolean("csrf_exempt", caller.csrf_exempt))
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


def _resolved(result: Any) -> Any:
    """Return the result of a coroutine, or ``result`` itself if it is none.

    Under ASGI, the coroutine runs in the event loop of the server, while the thread of the view waits.
    """
    if not iscoroutine(result):
        return result
    try:
        return async_to_sync(_await)(result)
    finally:
        _close(result)  # in case it could not begin


async def _await(coroutine: Coroutine[Any, Any, T]) -> T:
    return await coroutine


def _require_permission(user: Any, permission: str) -> None:
    # "is True", because in old user classes is_authenticated is a method, which is always truthy.
    authenticated = getattr(user, "is_authenticated", False)
    if authenticated and authenticated is not True:
        logger.error("is_authenticated must be True or False, not of type %s", type(authenticated).__name__)
        _close(authenticated)
    if authenticated is not True or not _boolean("is_active", getattr(user, "is_active", True)):
        if conf.AUTHENTICATE:
            raise APIError(401, "Not signed in.", "Send valid credentials with the request.")
        detail = "Sign in and send the session cookie."
        raise APIError(401, "Not signed in.", detail, WWW_Authenticate='Session realm="proxyhealth"')
    if permission and not _has_perm(user, permission):
        raise APIError(403, "Not allowed.", f"The user needs the permission {permission}.")


def _has_perm(user: Any, permission: str) -> bool:
    if hasattr(user, "ahas_perm") and not hasattr(user, "has_perm"):
        return _boolean("ahas_perm()", _resolved(user.ahas_perm(permission)))
    return _boolean("has_perm()", user.has_perm(permission))


def _boolean(name: str, value: Any) -> bool:
    """Return a result of the project's code. Raise ``TypeError`` if it is neither a boolean nor falsy.

    Such a value, for example a method or the coroutine of an ``async def``, would grant access to everyone.
    """
    if value is True or not value:
        return value is True
    _close(value)
    raise TypeError(
        f"{name} must be True or False, not of type {type(value).__name__}. "
        "It is called synchronously: only AUTHENTICATE and ahas_perm() may be async functions."
    )


def is_granted(permission: Any) -> bool:
    """Return True only if a result of ``has_perm()`` is True. Log other truthy results."""
    try:
        return _boolean("has_perm()", permission)
    except TypeError as error:
        logger.error("permission denied: %s", error)
        return False


def _close(value: Any) -> None:
    if iscoroutine(value):
        value.close()  # else Python warns that it was never awaited
