"""The signal receiver that requests a check of saved and deleted proxies, after the commit."""

import logging
import threading
import weakref
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from proxyhealth import isolation
from proxyhealth.api import inventory
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds.dispatch import request_check

logger = logging.getLogger(__name__)


class _ChangedIds(set[UUID]):
    """The ids of the proxies that one transaction changes."""

    sent = False

    def request_check(self) -> None:
        self.sent = True
        inventory.expire()
        request_check(self)


class _Transactions(threading.local):
    """The changed ids of the transactions in progress, by database alias.

    The references are weak, so that only the ``on_commit`` callbacks of a transaction keep its set alive.
    After a rollback, the set is gone, and the next transaction begins a new one.
    """

    def __init__(self) -> None:
        self.changed_ids: weakref.WeakValueDictionary[str, _ChangedIds] = weakref.WeakValueDictionary()


_transactions = _Transactions()


@receiver([post_save, post_delete], sender=WorkspaceProxy, dispatch_uid="proxyhealth")
def check_on_commit(instance: WorkspaceProxy, using: str, **kwargs: Any) -> None:
    """Request one check of all proxies that a transaction changes, when it commits."""
    changed_ids = _transactions.changed_ids.get(using)
    # A TestCase is one transaction that never commits. Each save needs a callback, so that a test can run it.
    if changed_ids is not None and not changed_ids.sent and not isolation.is_isolated():
        changed_ids.add(instance.pk)
        return
    changed_ids = _transactions.changed_ids[using] = _ChangedIds({instance.pk})
    try:
        transaction.on_commit(changed_ids.request_check, using=using, robust=True)
    except transaction.TransactionManagementError:
        # Without autocommit, Django does not report commits. The save must succeed all the same.
        logger.warning("without autocommit, a saved proxy is checked by the next round")
