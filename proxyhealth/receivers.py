"""Saving or deleting a proxy has it checked, once the transaction is committed."""

from __future__ import annotations

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


class _Changed(set[UUID]):
    """The proxies that one transaction changed."""

    sent = False

    def check(self) -> None:
        self.sent = True
        inventory.expire()
        request_check(self)


class _Open(threading.local):
    """The set of the transaction under way, by database.

    Weak, because only Django's list of what to do on commit may keep a set alive: with a roll-back
    it goes, and the next transaction begins a new one.
    """

    def __init__(self) -> None:
        self.sets: weakref.WeakValueDictionary[str, _Changed] = weakref.WeakValueDictionary()


_open = _Open()


@receiver([post_save, post_delete], sender=WorkspaceProxy, dispatch_uid="proxyhealth")
def check_on_commit(instance: WorkspaceProxy, using: str, **kwargs: Any) -> None:
    changed = _open.sets.get(using)
    if changed is None or changed.sent:
        changed = _open.sets[using] = _Changed()
        changed.add(instance.pk)
        try:
            transaction.on_commit(changed.check, using=using, robust=True)
        except transaction.TransactionManagementError:
            # Without autocommit nobody tells us of the commit; a save does not fail for that.
            logger.warning("a saved proxy is checked by the next round: there is no autocommit")
    else:
        changed.add(instance.pk)
