"""The receivers of Django's signals: check saved proxies, look at what waits to be told, watch the prober."""

import logging
import threading
import weakref
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.core.signals import request_started
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from proxyhealth import isolation
from proxyhealth.api import inventory
from proxyhealth.models import Channel, Silence, WorkspaceProxy
from proxyhealth.notifications import sending, watchdog
from proxyhealth.rounds.dispatch import request_check, request_delivery

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


@receiver([post_save, post_delete], sender=Silence, dispatch_uid="proxyhealth")
@receiver(post_save, sender=Channel, dispatch_uid="proxyhealth")
def deliver_on_commit(using: str, **kwargs: Any) -> None:
    """Request a look at the deliveries that wait, when a change of what they wait for commits."""
    if isolation.is_isolated():
        return
    with suppress(transaction.TransactionManagementError):  # without autocommit, the next round does so
        transaction.on_commit(_deliver, using=using, robust=True)


def _deliver() -> None:
    sending.look_again()
    request_delivery(0)


@receiver(request_started, dispatch_uid="proxyhealth")
def watch_prober(**kwargs: Any) -> None:
    """Watch the prober from the first request of a web process on.

    A thread that is started earlier would not be in the processes that gunicorn forks with ``--preload``.
    """
    watchdog.start()
