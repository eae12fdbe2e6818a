from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds.steps import read_proxies

pytestmark = pytest.mark.django_db


def test_read_proxies__active_proxies_in_one_query(django_assert_num_queries):
    for name in ("b", "a"):
        WorkspaceProxy.objects.create(name=name)
    WorkspaceProxy.objects.create(name="gone", deleted=True)
    with django_assert_num_queries(1):
        assert [proxy.name for proxy in read_proxies()] == ["a", "b"]


def test_read_proxies__by_id():
    one = WorkspaceProxy.objects.create(name="one", url="https://one.example.com", version="v1")
    WorkspaceProxy.objects.create(name="other")
    (found,) = read_proxies([one.pk, uuid4()])
    assert found == one.as_proxy()


def test_read_proxies__database_down():
    def refuse(*args):
        raise OperationalError("server closed the connection unexpectedly")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(RoundFailed, match="cannot be read from the database: server closed"),
    ):
        read_proxies()
