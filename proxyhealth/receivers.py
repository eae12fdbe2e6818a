"""The check of each proxy that is saved or deleted, once its transaction is committed."""

import logging
import threading
import weakref
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

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

    Weak, because only the callbacks of Django's transaction may keep a set alive. After a rollback the set
    disappears, and the next transaction begins a new one.
    """

    def __init__(self) -> None:
        self.changed_ids: weakref.WeakValueDictionary[str, _ChangedIds] = weakref.WeakValueDictionary()


_transactions = _Transactions()


@receiver([post_save, post_delete], sender=WorkspaceProxy, dispatch_uid="proxyhealth")
def check_on_commit(instance: WorkspaceProxy, using: str, **kwargs: Any) -> None:
    changed_ids = _transactions.changed_ids.get(using)
    if changed_ids is not None and not changed_ids.sent:
        changed_ids.add(instance.pk)
        return
    changed_ids = _transactions.changed_ids[using] = _ChangedIds({instance.pk})
    try:
        transaction.on_commit(changed_ids.request_check, using=using, robust=True)
    except transaction.TransactionManagementError:
        # Without autocommit, Django does not report commits. The save must succeed all the same.
        logger.warning("without autocommit, a saved proxy is checked by the next round")
