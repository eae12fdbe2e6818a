"""The comparison of the history with every snapshot that was written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from tests.chaos.commits import Change, Epoch, changes, statuses

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def transitions(history: dict[str, Any]) -> list[Change]:
    """Return the rows in the order in which they were written."""
    return [
        Change(row["proxy_uuid"], row["token"], row["before"], row["after"]) for row in history["transitions"]
    ]


def _by_proxy(rows: Iterable[Change]) -> dict[str, list[Change]]:
    found = defaultdict(list)
    for row in rows:
        found[row.proxy].append(row)
    return found


def check_rows(epoch: Epoch, history: dict[str, Any]) -> int:
    """Check that each change between two snapshots is one row, in order, and no other row exists."""
    written, shown = _by_proxy(transitions(history)), _by_proxy(changes(epoch.documents))
    assert written.keys() == shown.keys()
    for proxy, rows in shown.items():
        missing = [row for row in rows if row not in written[proxy]]
        extra = [row for row in written[proxy] if row not in rows]
        assert not missing, f"missing rows: {missing[:5]}, others of the proxy: {written[proxy][-20:]}"
        assert not extra, f"rows that no snapshot shows: {extra[:5]}, of {rows[-20:]}"
        assert written[proxy] == rows, f"twice, or in another order: {written[proxy]} of {rows}"
    return sum(map(len, shown.values()))


def check_rows_of_epochs(epochs: Sequence[Epoch], history: dict[str, Any]) -> int:
    """Check that each row was shown, and that only the last changes before a loss of Redis have no row.

    Return the number of these.
    """
    written = transitions(history)
    keys = {(row.proxy, row.token, row.after) for row in written}
    shown = {
        (id, token, status)
        for epoch in epochs
        for document in epoch.documents
        for id, (status, token, _) in statuses(document).items()
    }
    assert keys <= shown, f"rows that no snapshot shows: {keys - shown}"
    assert len(keys) == len(written), "rows that are written twice"
    lost = 0
    for epoch in epochs:
        shown_changes = changes(epoch.documents)
        if epoch is not epochs[0]:  # the history knew the statuses that came first
            shown_changes = [row for row in shown_changes if row.before != "unknown"]
        found = [(row.proxy, row.token, row.after) in keys for row in shown_changes]
        recorded = found.index(False) if False in found else len(found)
        assert not any(found[recorded:]), "a change is missing before one that has a row"
        lost += len(found) - recorded
        assert epoch is not epochs[-1] or recorded == len(found), "a change is missing, but Redis kept it"
    return lost


def check_times(epochs: Sequence[Epoch], history: dict[str, Any]) -> None:
    """Check that each status began when the snapshot says so, and that no time goes back."""
    since = {
        (id, token): begin
        for epoch in epochs
        for document in epoch.documents
        for id, (_, token, begin) in statuses(document).items()
    }
    last: dict[str, Any] = {}
    for row in history["transitions"]:
        proxy, token, at = row["proxy_uuid"], row["token"], microseconds(row["at"])
        assert at <= token, f"begins after its commit: {row}"
        if begin := since.get((proxy, token)):
            assert abs(microseconds(begin) - at) < 1_000_000, f"the snapshot says {begin}: {row}"
        previous = last.get(proxy)
        if previous:
            assert microseconds(previous["at"]) <= at, f"begins before {previous}: {row}"
            assert previous["watched"] <= row["watched"], f"knows less than {previous}: {row}"
        last[proxy] = row


def check_chains(history: dict[str, Any], last: dict[str, Any]) -> None:
    """Check that the rows of each proxy follow one another, and end with its status in the snapshot."""
    for proxy, rows in _by_proxy(transitions(history)).items():
        assert rows[0].before == "unknown", rows[0]
        for earlier, later in pairwise(rows):
            assert later.before == earlier.after, f"{later} follows {earlier}"
            assert later.token > earlier.token, f"{later} follows {earlier}"
            assert later.before != later.after, later
        assert rows[-1].after == statuses(last)[proxy][0], rows[-1]


def check_signals(signals: Sequence[str], history: dict[str, Any]) -> int:
    """Check that each row caused a signal, and each signal has a row. Return the number of repetitions."""
    rows = {
        f"{row['pk']} {row['proxy_uuid']} {row['token']} {row['before']} {row['after']}"
        for row in history["transitions"]
    }
    sent = set(signals)
    assert rows - sent == set(), f"no signal for {sorted(rows - sent)[:5]}"
    assert sent - rows == set(), f"no row for {sorted(sent - rows)[:5]}"
    return len(signals) - len(sent)


def check_losses(epochs: Sequence[Epoch], history: dict[str, Any]) -> int:
    """Check that the time around each loss of Redis is in one gap. Return the number of gaps.

    It begins with the last round or change in the history, and ends with the first round after the loss. If
    Redis is lost again before the gap is recorded, the next gap begins as early.
    """
    gaps = [gap for gap in history["gaps"] if gap["why"] == "redis_lost"]
    rounds = [{each["ticket"] for each in epoch.documents if each["ticket"]} for epoch in epochs]
    first_rounds = [min(tokens) for tokens in rounds[1:]]
    spans = [(microseconds(gap["start"]), gap["token"]) for gap in gaps]
    begins = set.union(*rounds) | {microseconds(row["at"]) for row in history["transitions"]}
    for begin, end in spans:
        assert begin in begins, f"begins without a round or a change: {begin}"
        assert end in first_rounds, f"ends later than with the first round: {end}"
    for token in first_rounds:
        assert sum(begin < token <= end for begin, end in spans) == 1, f"no gap at {token}: {spans}"
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans)), spans
    return len(gaps)


def check_gaps(epoch: Epoch, history: dict[str, Any], stale_after: float) -> int:
    """Check that there is a gap where the snapshot was stale until a full round, and nowhere else."""
    rounds = [token for token in dict.fromkeys(each["ticket"] for each in epoch.documents) if token]
    fresh = int(stale_after * 1_000_000)
    expected = [
        (before + fresh, after, "no_rounds") for before, after in pairwise(rounds) if after - before > fresh
    ]
    found = [(microseconds(gap["start"]), microseconds(gap["end"]), gap["why"]) for gap in history["gaps"]]
    assert found == expected
    (watch,) = history["watch"]
    known = rounds[-1] - rounds[0] - sum(end - start for start, end, _ in expected)
    first = next(each["watched"][1] for each in epoch.documents if each["ticket"])
    assert (watch["token"], watch["watched"]) == (rounds[-1], first + known)
    return len(expected)
