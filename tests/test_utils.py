from __future__ import annotations

import copy
import json
import operator
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from proxyhealth.utils import FrozenList, rfc3339


def test_rfc3339__is_utc_to_the_microsecond() -> None:
    whole = datetime(2024, 1, 1, 12, 0, 0, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(whole) == "2024-01-01T10:00:00.000000Z"
    assert datetime.fromisoformat(rfc3339(whole)) == whole


@pytest.mark.parametrize(
    "write",
    [
        lambda items: items.append("c"),
        lambda items: items.extend(["c"]),
        lambda items: items.insert(0, "c"),
        lambda items: items.remove("a"),
        lambda items: items.pop(),
        lambda items: items.clear(),
        lambda items: items.sort(key=str, reverse=True),
        lambda items: items.reverse(),
        lambda items: operator.setitem(items, 0, "c"),
        lambda items: operator.setitem(items, slice(0, 1), ["c"]),
        lambda items: operator.delitem(items, 0),
        lambda items: operator.iadd(items, ["c"]),
        lambda items: operator.imul(items, 2),
    ],
)
def test_frozen_list__cannot_be_written_to(write: Callable[[list[str]], Any]) -> None:
    items = FrozenList(["b", "a"])
    with pytest.raises(TypeError, match="cannot be written to: make a copy of it"):
        write(items)
    assert items == ["b", "a"]


def test_frozen_list__blocks_all_writing_methods() -> None:
    reading = {"copy", "count", "index", "__add__", "__mul__", "__rmul__"}
    own = set(vars(FrozenList))
    assert {name for name in vars(list) if not name.startswith("__")} <= own | reading
    assert {"__setitem__", "__delitem__", "__iadd__", "__imul__"} <= own


@pytest.mark.parametrize(
    "make",
    [
        list,
        list.copy,
        copy.copy,
        copy.deepcopy,
        lambda items: pickle.loads(pickle.dumps(items)),
        lambda items: json.loads(json.dumps(items)),
        lambda items: items[:],
        lambda items: [*items],
        sorted,
    ],
)
def test_frozen_list__copies_are_plain_lists(make: Callable[[list[str]], list[str]]) -> None:
    items = FrozenList(["a", "b"])
    made = make(items)
    assert made == items == ["a", "b"]
    assert type(made) is list
    made.append("c")
    assert items == ["a", "b"]
