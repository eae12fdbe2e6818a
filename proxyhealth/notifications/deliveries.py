"""Deliveries: which change has to be told to which channel."""

from collections.abc import Sequence

from proxyhealth.models import Outage, Transition


def make(alias: str, rows: Sequence[Transition], outages: Sequence[Outage | None]) -> int:
    """Make the deliveries of new transitions and their outages. Return their number.

    The transaction that wrote the rows calls it, so a transition and its deliveries are saved together. The
    rows have primary keys. Those whose status is older than the history are not among them. An outage that
    began, continued and ended in ``rows`` is in its last state for each of them.
    """
    return 0
