"""Results of the project's code that are not booleans: they must not grant access."""

import asyncio
import functools
from types import SimpleNamespace

import pytest
from django.test import Client, RequestFactory

from proxyhealth.access import Authenticated, may_see_regions
from proxyhealth.checks import check_settings
from tests.support.api import LIST, REGIONS, assert_error

pytestmark = pytest.mark.django_db

DETAIL = "Authentication failed. See the server log."


async def answer_true(*args):
    return True


async def async_generator(request):
    yield None


class AwaitableObject:
    def __await__(self):
        return iter(())


class AsyncCallable:
    async def __call__(self, request):
        return None


class SyncCallable:
    def __call__(self, request):
        return user(has_perm=lambda permission: True)


def user(**values):
    return SimpleNamespace(is_authenticated=True, is_active=True, **values)


class UserWithAsyncPermissions:
    is_authenticated = True

    async def has_perm(self, permission):
        return True


class UserWithAsyncAuthentication:
    @property
    async def is_authenticated(self):
        return True

    def has_perm(self, permission):
        return True


RESULT = None  # what authenticate() returns


def authenticate(request):
    return RESULT() if callable(RESULT) else RESULT


async_callable = AsyncCallable()
sync_callable = SyncCallable()
async_partial = functools.partial(answer_true)


@pytest.fixture
def results(configure, monkeypatch):
    """``results(value)`` sets the result of the AUTHENTICATE function."""
    configure(AUTHENTICATE=f"{__name__}.authenticate")
    return lambda value: monkeypatch.setattr(f"{__name__}.RESULT", value)


def assert_denied(caplog, method, path, cause):
    assert_error(getattr(Client(), method)(path), 500, "Not authenticated.", DETAIL)
    assert cause in caplog.text


@pytest.mark.parametrize(
    "has_perm",
    [
        answer_true,
        functools.partial(answer_true),
        lambda permission: answer_true(),
        lambda permission: AwaitableObject(),
        lambda permission: 1,
        lambda permission: "yes",
        lambda permission: [permission],
        lambda permission: object(),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("get", LIST), ("post", f"{LIST}/paris/check")])
def test_has_perm__truthy_is_denied(paris, sent, results, caplog, has_perm, method, path):
    results(Authenticated(user(has_perm=has_perm), csrf_exempt=True))
    assert_denied(caplog, method, path, "has_perm() must be True or False, not of type ")
    assert sent == []


def test_has_perm__async_method_is_denied(paris, results, caplog):
    results(UserWithAsyncPermissions())
    assert_denied(caplog, "get", LIST, "has_perm() must be True or False, not of type coroutine.")


def test_has_perm__future_is_denied(paris, results, caplog):
    loop = asyncio.new_event_loop()
    results(user(has_perm=lambda permission: loop.create_future()))
    assert_denied(caplog, "get", LIST, "not of type Future")
    loop.close()


@pytest.mark.parametrize("value", [False, None, 0, ""])
def test_has_perm__falsy_is_403(paris, results, value):
    results(user(has_perm=lambda permission: value))
    assert_error(Client().get(LIST), 403, "Not allowed.")


def test_has_perm__true_is_allowed(paris, results):
    results(user(has_perm=lambda permission: True))
    assert Client().get(LIST).status_code == 200


async def answer_false(*args):
    return False


async def answer_yes(*args):
    return "yes"


@pytest.mark.parametrize(
    ("methods", "status"),
    [
        ({"ahas_perm": answer_true}, 200),
        ({"ahas_perm": answer_false}, 403),
        ({"ahas_perm": answer_yes}, 500),
        ({"ahas_perm": lambda permission: AwaitableObject()}, 500),
        ({"ahas_perm": answer_true, "has_perm": lambda permission: False}, 403),
    ],
)
def test_ahas_perm__counts_without_has_perm(paris, results, methods, status):
    results(user(**methods))
    assert Client().get(LIST).status_code == status


def test_authenticate__in_an_event_loop_is_denied(paris, results, caplog):
    """Django calls a view in a thread. Code that calls it in a coroutine gets no coroutine's result."""
    results(answer_true)

    async def call():
        return may_see_regions(RequestFactory().get("/"))

    assert asyncio.run(call()) is False
    assert "You cannot use AsyncToSync" in caplog.text


@pytest.mark.parametrize("value", [lambda: True, answer_true, 1, "no"])
def test_is_active__truthy_is_denied(paris, results, caplog, value):
    results(SimpleNamespace(is_authenticated=True, is_active=value))
    assert_denied(caplog, "get", REGIONS, "is_active must be True or False, not of type ")


@pytest.mark.parametrize("value", [1, "yes", lambda: True])
def test_is_authenticated__truthy_is_401_and_logged(paris, results, caplog, value):
    results(SimpleNamespace(is_authenticated=value, has_perm=lambda permission: True))
    assert_error(Client().get(LIST), 401, "Not signed in.")
    assert "is_authenticated must be True or False, not of type " in caplog.text


def test_is_authenticated__coroutine_is_401_and_logged(paris, results, caplog):
    results(UserWithAsyncAuthentication())
    assert_error(Client().get(LIST), 401, "Not signed in.")
    assert "is_authenticated must be True or False, not of type coroutine" in caplog.text


@pytest.mark.parametrize("value", [1, "no", answer_true])
def test_csrf_exempt__truthy_is_denied(paris, sent, results, caplog, value):
    results(Authenticated(user(has_perm=lambda permission: True), csrf_exempt=value))
    assert_denied(caplog, "post", f"{LIST}/paris/check", "csrf_exempt must be True or False, not of type ")
    assert sent == []


async def coroutine_of_a_coroutine():
    return answer_true()


@pytest.mark.parametrize(
    "result",
    [
        coroutine_of_a_coroutine,
        AwaitableObject,
        lambda: Authenticated(answer_true(), csrf_exempt=True),
    ],
)
@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_authenticate__awaitable_user_is_denied(paris, results, caplog, result, path):
    results(result)
    assert_denied(caplog, "get", path, "AUTHENTICATE must return a user, but its user is an awaitable.")


def test_authenticate__coroutine_of_true_is_401(paris, results):
    results(answer_true)
    assert_error(Client().get(LIST), 401, "Not signed in.")


def test_authenticate__callable_object(paris, configure):
    configure(AUTHENTICATE=f"{__name__}.sync_callable")
    assert Client().get(LIST).status_code == 200


@pytest.mark.parametrize("name", ["async_callable", "async_partial", "answer_true"])
def test_authenticate__async_callable_is_accepted(paris, configure, name):
    configure(AUTHENTICATE=f"{__name__}.{name}")
    assert check_settings() == []
    assert_error(Client().get(LIST), 401, "Not signed in.")  # neither True nor None is a user


def test_authenticate__async_generator_is_reported(configure):
    configure(AUTHENTICATE=f"{__name__}.async_generator")
    (error,) = check_settings()
    assert error.id == "proxyhealth.E025"
    assert "must be the dotted path of a function" in error.msg
