"""The document in the cache: its layout, what of it is read anew, and what becomes of a damaged one."""

import json
import random
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from proxyhealth.exceptions import UnusableSnapshot
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.document import HEAD, HEAD_BYTES, PreviousLines, decode, dump
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Results, merged
from tests.storage.documents import TOKEN, changed_json, commit_statuses
from tests.support.values import NOW, a_round, judgements, make_proxy, make_status

# What a line, a text of JSON, or a text of UTF-8 might be thought to end at.
ODD = [
    '"',
    "\\ud800",
    "\\",
    "\n",
    ",\n",
    "\r\n",
    "\n]}",
    '",\n"proxies": [\n',
    "\u2028\u2029\x85",
    "\x00",
    "é ☃ 😀",
    "</a>",
]


@pytest.fixture(scope="module")
def statuses():
    reports = [HealthReport(), HealthReport(("kaputt",), ("warm", "laut")), HealthReport((), ("warm",))]
    return [
        make_status(make_proxy(name), status, report=report, latency=0.25)
        for name, status, report in zip("abc", (Status.OK, Status.UNHEALTHY, Status.OK), reports, strict=True)
    ]


@pytest.fixture(scope="module")
def value(statuses):
    return commit_statuses(None, *statuses, full_round=a_round())


# Layout


def test_dump__is_json_with_a_line_for_each_proxy(statuses, value):
    head, judgements, opening, *lines, end = value.split(b"\n")
    assert HEAD.match(head[:HEAD_BYTES])
    assert opening == b'"proxies": ['
    assert [json.loads(line.removesuffix(b",")) for line in lines] == [s.proxy.to_json() for s in statuses]
    assert end == b"]}"
    whole = json.loads(value)
    assert whole["proxies"] == [s.proxy.to_json() for s in statuses]
    assert json.loads(b"{%s}" % judgements.removesuffix(b",")) == {"judgements": whole["judgements"]}
    assert whole["judgements"] == {
        "name": ["a", "b", "c"],
        "ticket": [TOKEN] * 3,
        "checked_at": ["2026-11-22T08:00:00.000000Z"] * 3,
        "proxy_host": ["a.example.com", "b.example.com", "c.example.com"],
        "status": ["ok", "unhealthy", "ok"],
        "errors": [None, ["kaputt"], None],
        "warnings": [None, ["warm", "laut"], ["warm"]],
        "latency": [0.25] * 3,
        "since": ["2026-09-21T14:13:20.000000Z"] * 3,
    }
    assert whole["ticket"] == TOKEN


def test_dump__of_no_proxies_is_json_too():
    value = commit_statuses(None)
    assert json.loads(value)["proxies"] == []
    assert json.loads(value)["judgements"] == {}
    assert decode(value, PreviousLines()).snapshot.statuses == {}
    assert json.loads(commit_statuses(value, make_status(make_proxy())))["number"] == 2


@pytest.mark.parametrize("odd", ODD)
def test_decode__comes_back_equal_whatever_the_texts(odd):
    awkward = replace(make_proxy("a" + odd), display_name=odd, icon=odd, version=odd, url=odd)
    report = HealthReport((odd, "x"), (odd * 2,))
    status = make_status(awkward, Status.UNHEALTHY, reason=Reason.REPORT_ERRORS, report=report)
    status = replace(status, proxy_host=odd, tls_expires_at=NOW + timedelta(days=90))
    other = make_status(make_proxy("b"))
    value = commit_statuses(None, other, status)
    json.loads(value)
    assert judgements(decode(value, PreviousLines()).snapshot) == [status, other]
    merged_again = commit_statuses(value, other, token=TOKEN + 1)
    assert judgements(decode(merged_again, PreviousLines()).snapshot) == [status, other]


def test_decode__a_lone_surrogate_is_a_question_mark_everywhere():
    odd = replace(make_proxy("a\ud800b"), url="\udfff", version="\ud83d\ude00")
    value = commit_statuses(
        None, make_status(odd, report=HealthReport((), ("\ud800",))), make_status(make_proxy("c"))
    )
    found, other = decode(value, PreviousLines()).snapshot.statuses.values()
    assert (found.proxy.name, found.proxy.url, found.proxy.version) == ("a?b", "?", "??")
    assert found.report.warnings == ("?",)
    assert other.proxy.name == "c"


# Reuse


def test_decode__reuses_all_proxies_if_no_line_has_changed(statuses, value):
    first = decode(value, PreviousLines())
    later = [replace(status, checked_at=NOW + timedelta(hours=1)) for status in statuses]
    second = decode(commit_statuses(value, *later, token=TOKEN + 1, full_round=a_round()), first.previous)
    assert judgements(second.snapshot) == later
    for id, status in second.snapshot.statuses.items():
        assert status.proxy is first.snapshot.statuses[id].proxy


def test_decode__reuses_the_proxies_whose_lines_are_the_same(statuses, value):
    first = decode(value, PreviousLines())
    a, b, c = statuses
    renamed = replace(b, proxy=replace(b.proxy, name="z"))
    new = make_status(make_proxy("0"))
    round_value = commit_statuses(value, new, renamed, c, token=TOKEN + 1, full_round=a_round())
    second = decode(round_value, first.previous)
    assert judgements(second.snapshot) == [new, c, renamed]
    assert second.snapshot.statuses[c.proxy.id].proxy is first.snapshot.statuses[c.proxy.id].proxy
    assert a.proxy.id not in second.snapshot.statuses
    third = decode(value, second.previous)
    assert third.snapshot == first.snapshot
    assert third.snapshot.statuses[c.proxy.id].proxy is first.snapshot.statuses[c.proxy.id].proxy


def test_decode__has_one_moment_for_a_round(value):
    one, other, _ = decode(value, PreviousLines()).snapshot.statuses.values()
    assert one.checked_at is other.checked_at


def test_read__has_the_same_proxies_from_commit_to_commit(redis_client):
    one, other = make_proxy("one"), make_proxy("other")
    commit([make_status(one), make_status(other)], take_token(), full_round=a_round())
    first = reader.read().statuses
    changed = replace(other, version="2")
    commit([make_status(changed)], take_token())
    second = reader.read().statuses
    assert second[one.id].proxy is first[one.id].proxy
    assert second[other.id].proxy == changed
    assert first[other.id].proxy == other
    redis_client.flushall()
    reader.read()
    commit([make_status(one), make_status(changed)], take_token(), full_round=a_round())
    assert reader.read().statuses[one.id].proxy is first[one.id].proxy, "it is the same cache, emptied"


def test_merged__keeps_the_lines_of_untouched_proxies(statuses, value):
    a, b, c = statuses
    line = value.split(b"\n")[4]
    assert json.loads(line.removesuffix(b","))["name"] == "b"
    unread = line.replace(b'"version": ""', b'"version":""')
    value = commit_statuses(value.replace(line, unread), a, token=TOKEN + 1)
    assert unread in value
    assert line in commit_statuses(value, a, b, c, token=TOKEN + 2, full_round=a_round())


def test_merged__keeps_unknown_columns_of_untouched_proxies(statuses, value):
    of_newer = changed_json(lambda whole: whole["judgements"].update(colour=["red", "green", None]))(value)
    assert judgements(decode(of_newer, PreviousLines()).snapshot) == statuses
    later = commit_statuses(of_newer, statuses[0], token=TOKEN + 1)
    assert json.loads(later)["judgements"]["colour"] == [None, "green", None]
    assert judgements(decode(later, PreviousLines()).snapshot) == statuses


# Damage


def of_format_2(value):
    def rows(whole):
        columns = whole["judgements"]
        whole["judgements"] = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]

    return changed_json(rows)(value).replace(b'"format": 3', b'"format": 2')


NOT_FINITE = (b"NaN", b"Infinity", b"-Infinity", b"1e999")


def changed_text(old, new):
    """Return a function that replaces a text that a document has once."""

    def damage(value):
        assert value.count(old) == 1
        return value.replace(old, new)

    return damage


def changed_column(name, change):
    """A whole in which what ``change`` does with the list of a column has been done."""
    return changed_json(lambda whole: change(whole["judgements"][name]))


def changed_columns(change):
    return changed_json(lambda whole: [change(column) for column in whole["judgements"].values()])


DAMAGE = {
    "format 2": of_format_2,
    "format 3 in the layout of 2": lambda value: of_format_2(value).replace(b'"format": 2', b'"format": 3'),
    "a later format": lambda value: value.replace(b'"format": 3', b'"format": 4'),
    "on one line": lambda value: json.dumps(json.loads(value)).encode(),
    "indented": lambda value: json.dumps(json.loads(value), indent=1).encode(),
    "of other lines": lambda value: value.replace(b"\n", b"\r\n"),
    "with a newline at its end": lambda value: value + b"\n",
    "twice": lambda value: value + value,
    "not UTF-8": lambda value: value.replace(b"kaputt", b"\xff"),
    "head without a ticket": changed_json(lambda whole: whole.pop("ticket")),
    "head with a text for a token": changed_json(lambda whole: whole.update(ticket="1")),
    "head without rounds": changed_json(lambda whole: whole.update(rounds=None)),
    "head with a text for a count": changed_json(lambda whole: whole["rounds"]["counts"].insert(0, "many")),
    "head with a text for a sum": changed_json(lambda whole: whole["rounds"].update(sum="much")),
    "head with a text for a duration": changed_json(lambda whole: whole.update(duration="long")),
    "head with a sum that is too large": changed_json(lambda whole: whole["rounds"].update(sum=10**400)),
    "head with endless rounds": changed_json(
        lambda whole: whole["rounds"].update(counts=[float("inf")] * 12)
    ),
    "head with a duration that is too large": changed_json(lambda whole: whole.update(duration=10**400)),
    "head with a moment that is none": changed_json(lambda whole: whole.update(checked_at="today")),
    "head with a moment without a zone": changed_json(
        lambda whole: whole.update(stale_at="2026-11-22T08:00")
    ),
    "head with a moment before all": changed_json(
        lambda whole: whole.update(checked_at="0001-01-01T00:00:00+01:00")
    ),
    "head with a duration that is endless in milliseconds": changed_json(
        lambda whole: whole.update(duration=1e306)
    ),
    "head with a count that is too large": changed_json(
        lambda whole: whole["rounds"]["counts"].__setitem__(0, 10**400)
    ),
    "no judgements": changed_json(lambda whole: whole.update(judgements=None)),
    "judgements of nothing": changed_json(lambda whole: whole.update(judgements={})),
    "judgements too deep": lambda value: value.replace(b'"name": [', b'"name": ' + b"[" * 100_000, 1),
    "a judgement less": changed_columns(lambda column: column.pop()),
    "a judgement more": changed_columns(lambda column: column.append(column[0])),
    "a judgement at another's place": changed_columns(lambda column: column.reverse()),
    "a column that is too short": changed_column("status", lambda column: column.pop()),
    "a column that is too long": changed_column("latency", lambda column: column.append(0.5)),
    "a column that is a text": changed_json(lambda whole: whole["judgements"].update(reason="why")),
    "a column that is none": changed_json(lambda whole: whole["judgements"].update(reason=None)),
    "a latency that is a text": changed_column("latency", lambda column: column.__setitem__(1, "0.1")),
    "a latency that is too large": changed_column("latency", lambda column: column.__setitem__(1, 10**400)),
    **{
        f"a latency of {number}": changed_text(b'"latency": [0.25', b'"latency": [' + number)
        for number in NOT_FINITE
    },
    **{
        f"head with a duration of {number}": changed_text(b'"duration": 0.3', b'"duration": ' + number)
        for number in NOT_FINITE
    },
    **{
        f"head with a sum of {number}": changed_text(b'"sum": ', b'"sum": %s, "old": ' % number)
        for number in NOT_FINITE
    },
    **{
        f"head with the number {number}": changed_text(b'"number": ', b'"number": %s, "old": ' % number)
        for number in (*NOT_FINITE, b'"1"', b"1.5")
    },
    "a host that is a number": changed_column("proxy_host", lambda column: column.__setitem__(1, 7)),
    "latencies that are endless in milliseconds": changed_column(
        "latency", lambda column: column.__setitem__(1, -1e306)
    ),
    "errors with a lone surrogate": changed_column(
        "errors", lambda column: column.__setitem__(1, ["\ud800"])
    ),
    "errors that are no texts": changed_column("errors", lambda column: column.__setitem__(1, ["a", None])),
    "errors that are a text": changed_column("errors", lambda column: column.__setitem__(1, "kaputt")),
    "warnings that are an object": changed_column("warnings", lambda column: column.__setitem__(1, {"a": 1})),
    "a judgement without a name": changed_column("name", lambda column: column.__setitem__(1, None)),
    "a judgement with a number for a moment": changed_column(
        "checked_at", lambda column: column.__setitem__(1, 1)
    ),
    "a judgement with a list for a moment": changed_column(
        "checked_at", lambda column: column.__setitem__(1, [])
    ),
    "a judgement without a status": changed_column("status", lambda column: column.__setitem__(1, None)),
    "a status that is a list": changed_column("status", lambda column: column.__setitem__(1, [])),
    **{
        f"no {name}": changed_json(lambda whole, name=name: whole["judgements"].pop(name))
        for name in ("name", "ticket", "status")
    },
    "a proxy less": changed_json(lambda whole: whole["proxies"].pop()),
    "a proxy more": changed_json(lambda whole: whole["proxies"].append(whole["proxies"][0])),
    "a proxy at another's place": changed_json(lambda whole: whole["proxies"].reverse()),
    "a proxy that is none": changed_json(lambda whole: whole["proxies"].__setitem__(1, None)),
    "a proxy without a name": changed_json(lambda whole: whole["proxies"][1].pop("name")),
    "a proxy with an id that is none": changed_json(lambda whole: whole["proxies"][1].update(id="1")),
    "a proxy with a moment that is none": changed_json(
        lambda whole: whole["proxies"][1].update(updated_at="today")
    ),
    "a proxy with a URL that is none": changed_json(lambda whole: whole["proxies"][1].update(url=None)),
    "a proxy that is not JSON": lambda value: value.replace(b'"wildcard', b"wildcard", 1),
    "two proxies on a line": lambda value: value.replace(b"},\n{", b"}, {", 1),
    "a proxy on two lines": lambda value: value.replace(b', "icon"', b',\n"icon"', 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_decode__of_a_damaged_value_is_a_value_error(value, damage):
    for known in (PreviousLines(), decode(value, PreviousLines()).previous):
        with pytest.raises(ValueError, match=r"."):
            decode(damage(value), known)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_merged__a_round_makes_a_damaged_value_good(statuses, value, damage):
    healed = commit_statuses(damage(value), *statuses, token=TOKEN + 1, full_round=a_round())
    assert judgements(decode(healed, PreviousLines()).snapshot) == statuses


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_read__has_the_last_copy_while_the_document_is_damaged(redis_client, snapshot_key, statuses, damage):
    commit(statuses, take_token(), full_round=a_round())
    before = reader.read()
    commit(statuses, take_token(), full_round=a_round())
    redis_client.set(snapshot_key, damage(redis_client.get(snapshot_key)))
    faulty = reader.read()
    assert faulty.statuses == before.statuses
    assert faulty.stale_reason.startswith("The snapshot cannot be read (")
    commit(statuses, take_token(), full_round=a_round())
    good = reader.read_anew()
    assert not good.stale
    assert judgements(good) == judgements(before)


def test_decode__cut_off_anywhere_is_a_value_error(value):
    previous = decode(value, PreviousLines()).previous
    for length in range(len(value)):
        with pytest.raises(ValueError, match=r"."):
            decode(value[:length], previous)


def test_merged__a_round_makes_good_whatever_is_damaged(statuses, value, caplog):
    generator = random.Random(11)
    readable = set()
    for _ in range(3000):
        damaged = bytearray(value)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.choice(b'{}[],:"\\\n019ax \xff')
        try:
            decode(bytes(damaged), PreviousLines())
            readable.add(True)
        except ValueError:
            readable.add(False)
        results = Results(statuses, 10 * TOKEN, full_round=a_round())
        healed = dump(merged(bytes(damaged), results, last_token=10 * TOKEN).document)
        assert judgements(decode(healed, PreviousLines()).snapshot) == statuses
        caplog.clear()
    assert readable == {True, False}


@pytest.mark.parametrize("name", ["format 2", "a later format", "on one line", "a judgement less"])
def test_merged__a_check_replaces_no_unusable_value(value, name):
    """The check knows only a few proxies, and the value may be of a newer version."""
    with pytest.raises(UnusableSnapshot, match="cannot be read"):
        merged(DAMAGE[name](value), Results([make_status(make_proxy("new"))], TOKEN + 1))


FUTURE = {
    "of the last round": lambda whole: whole.update(ticket=10**17),
    "of a judgement": lambda whole: whole["judgements"]["ticket"].__setitem__(1, 10**17),
    "of a removed proxy": lambda whole: whole.update(removed={str(UUID(int=1)): 10**17}),
}


@pytest.mark.parametrize("change", FUTURE.values(), ids=FUTURE)
def test_merged__a_token_that_was_never_taken_is_damage(value, statuses, change, caplog):
    """Otherwise no later result of the proxy, or of any round, would ever win."""
    future = changed_json(change)(value)
    document, *_ = merged(future, Results(statuses, TOKEN + 1, full_round=a_round()), last_token=TOKEN + 1)
    assert document.head["ticket"] == TOKEN + 1
    assert {row["ticket"] for row in document.judgements.values()} == {TOKEN + 1}
    assert document.head["removed"] == {}
    assert "was never taken" in caplog.text
