import time

import pytest
from django.db import transaction
from django.test import TestCase

from proxyhealth.models import WorkspaceProxy
from tests.support.machine import at_most
from tests.support.proxies import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


def ids_of(*proxies):
    return {str(proxy.pk) for proxy in proxies}


def test_save__outside_transaction_sends_at_once(sent):
    paris = WorkspaceProxy.objects.create(name="paris")
    wait_for(lambda: sent == [ids_of(paris)])


def test_save__sends_once_per_transaction(sent):
    with transaction.atomic():
        paris = WorkspaceProxy.objects.create(name="paris")
        oslo = WorkspaceProxy.objects.create(name="oslo")
        paris.save()
        time.sleep(0.05)
        assert sent == []
    wait_for(lambda: sent == [ids_of(paris, oslo)])


def test_delete__sends_id_of_deleted_row(sent):
    paris = WorkspaceProxy.objects.create(name="paris")
    wait_for(lambda: len(sent) == 1)
    ids = ids_of(paris)
    paris.delete()
    wait_for(lambda: sent == [ids, ids])


def test_save__rolled_back_sends_nothing(sent):
    with transaction.atomic():
        WorkspaceProxy.objects.create(name="paris")
        transaction.set_rollback(True)
    with transaction.atomic():
        oslo = WorkspaceProxy.objects.create(name="oslo")
    wait_for(lambda: sent == [ids_of(oslo)])


def test_save__savepoint_rolled_back_sends_the_rest(sent):
    with transaction.atomic():
        try:
            with transaction.atomic():
                WorkspaceProxy.objects.create(name="paris")
                raise RuntimeError
        except RuntimeError:
            pass
        oslo = WorkspaceProxy.objects.create(name="oslo")
    wait_for(lambda: sent == [ids_of(oslo)])


def test_save__in_savepoint_joins_outer_transaction(sent):
    with transaction.atomic():
        paris = WorkspaceProxy.objects.create(name="paris")
        with transaction.atomic():
            oslo = WorkspaceProxy.objects.create(name="oslo")
    wait_for(lambda: sent == [ids_of(paris, oslo)])


def test_save__broker_down_succeeds(monkeypatch, caplog):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr("proxyhealth.rounds.dispatch._send", refuse)
    with at_most(0.5):
        paris = WorkspaceProxy.objects.create(name="paris")
    assert WorkspaceProxy.objects.filter(pk=paris.pk).exists()
    wait_for(lambda: "the next round makes up for it: broker down" in caplog.text)


def test_update_and_bulk_create__send_nothing(sent):
    WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name="paris")])
    WorkspaceProxy.objects.update(version="v2")
    oslo = WorkspaceProxy.objects.create(name="oslo")
    wait_for(lambda: sent == [ids_of(oslo)])


@pytest.mark.django_db
def test_save__in_test_case_that_captures_callbacks(sent):
    """A host's TestCase keeps the callbacks that it ran. The next save must be sent, too."""
    with TestCase.captureOnCommitCallbacks(execute=True) as first:
        paris = WorkspaceProxy.objects.create(name="paris")
    wait_for(lambda: sent == [ids_of(paris)])  # before the second is added to it
    with TestCase.captureOnCommitCallbacks(execute=True) as second:
        paris.save()
    assert (len(first), len(second)) == (1, 1)
    wait_for(lambda: sent == [ids_of(paris), ids_of(paris)])


def test_save__without_autocommit_succeeds_and_warns(sent, caplog):
    transaction.set_autocommit(False)
    try:
        WorkspaceProxy.objects.create(name="paris")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert WorkspaceProxy.objects.filter(name="paris").exists()
    assert sent == []
    assert "checked by the next round" in caplog.text
