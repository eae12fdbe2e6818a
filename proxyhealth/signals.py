"""The signals that the app sends."""

from django.dispatch import Signal

#: The confirmed status of a proxy has changed, and the row of the change is committed. The sender is
#: ``WorkspaceProxy``. The arguments are ``proxy_status``, the ``ProxyStatus`` that began, or None if the
#: proxy was removed; ``before``, the status before it, as a text; and ``transition``, the row. A task sends
#: the signal at least once: after an error of a receiver, again, with the same transition.
status_changed = Signal()
