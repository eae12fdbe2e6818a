"""A real Prometheus with the shipped rules scrapes two web processes, beside a worker and beat."""

from __future__ import annotations

import time
from itertools import groupby
from math import isnan

import pytest
import trustme

from tests.chaos.deployment import GUNICORN
from tests.chaos.prometheus import FOR, JOB, STEP, Prometheus
from tests.contrib.expressions import EMPTY_WHEN_HEALTHY, PARTS, expressions, rules, table_of
from tests.support.proxies import wait_for
from tests.support.servers import server_context

INTERVAL = 2
SHOWN = INTERVAL + 2 * STEP + 10  # seconds until Prometheus shows a change, on a busy machine
FIRES = SHOWN + 2 * INTERVAL + FOR

CHANGE = "/admin/proxyhealth/workspaceproxy/"
UNREACHABLE = "ProxyhealthProxyUnreachable"
OURS = '{__name__=~"proxyhealth_.+"}'

# A channel and a silence, so that no series is missing. The channel is disabled: nothing is sent.
ADD_ROWS = """
from datetime import timedelta
from django.utils.timezone import now
from proxyhealth.models import Channel, Silence
Channel.objects.create(
    name="ops", kind="webhook", target="http://127.0.0.1:1", enabled=False, listens_since=now()
)
Silence.objects.create(proxies="bergen", starts=now(), ends=now() + timedelta(hours=1), reason="work")
"""
EMPTY = EMPTY_WHEN_HEALTHY - {"rules: job_proxy:proxyhealth_silenced:max"}


@pytest.fixture
def observed(deploy, tmp_path):
    """``observed(*names)`` starts a deployment with these proxies and one over HTTPS, and a Prometheus."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    env = {
        "DEBUG": 0,
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "CA_BUNDLE": tmp_path / "ca.pem",
    }
    started = []

    def observe(*names):
        deployment = deploy(interval=INTERVAL, webs=2, env=env)
        for web in deployment.webs:
            web.command = GUNICORN
        for name in names:
            deployment.add(name)
        deployment.add("bergen", tls=server_context(authority, "127.0.0.1"))
        deployment.python(ADD_ROWS)
        prometheus = Prometheus(tmp_path, [f"127.0.0.1:{port}" for port in deployment.web_ports])
        started.append(prometheus)
        deployment.others.append(prometheus.process)
        deployment.start()
        prometheus.start()
        return deployment, prometheus

    yield observe
    for prometheus in started:
        prometheus.close()


def save(deployment, name, /, **values):
    """Save a row by the form in the admin, which sends all values."""
    row = deployment.row(name)
    form = {key: row[key] for key in ("name", "display_name", "icon", "url", "wildcard_hostname", "version")}
    deployment.post(f"{CHANGE}{row['id']}/change/", **{**form, **values})


def by(prometheus, label, selector):
    """Return the current values of each target, by one of the labels."""
    values = {}
    for sample in prometheus.query(selector):
        values.setdefault(sample.labels["instance"], {})[sample.labels[label]] = sample.value
    return values


def from_both(prometheus, value):
    """Return the same value for each target."""
    return dict.fromkeys(prometheus.targets, value)


def wait_for_status(prometheus, proxy_id, number):
    selector = f'proxyhealth_health_check_results{{proxy_id="{proxy_id}"}}'
    expected = from_both(prometheus, {proxy_id: number})
    prometheus.wait_until(
        lambda: by(prometheus, "proxy_id", selector) == expected,
        SHOWN,
        f"both targets have {number} for {proxy_id}",
    )


def states(prometheus, proxy_id):
    """Return the states of the alert on a proxy, in order, each with the Unix time of its first sample."""
    samples = [
        (at, labels["alertstate"])
        for labels, values in prometheus.history(
            f'ALERTS{{alertname="{UNREACHABLE}", proxy_id="{proxy_id}"}}'
        )
        for at, _ in values
    ]
    spans = []
    for state, group in groupby(sorted(samples), key=lambda sample: sample[1]):
        spans.append((state, next(group)[0]))
    return spans


def results(prometheus, proxy_id):
    """Return the results of a proxy from each target, in order, without repetitions."""
    return {
        labels["instance"]: [value for value, _ in groupby(value for _, value in samples)]
        for labels, samples in prometheus.history(
            f'proxyhealth_health_check_results{{proxy_id="{proxy_id}"}}'
        )
    }


@pytest.mark.fault("proxies killed, under Prometheus")
def test_proxy_killed__alert_until_it_is_back_or_deleted(observed, verdict):
    deployment, prometheus = observed("lima", "oslo", "quito")
    ids = {name: deployment.row(name)["id"] for name in deployment.proxies}
    for proxy_id in ids.values():
        wait_for_status(prometheus, proxy_id, 1)
        prometheus.wait_until(
            lambda one=proxy_id: "job_proxy:proxyhealth_usable:avg1d" in names_of(prometheus, one),
            SHOWN,
            "the last of all rules has been evaluated",
        )
    series = {name: names_of(prometheus, ids[name]) for name in ids}
    assert prometheus.alerts() == []

    killed = time.time()
    for name in ("lima", "quito"):
        deployment.proxies[name].stop()
    for name in ("lima", "quito"):
        wait_for_status(prometheus, ids[name], -2)
    prometheus.wait_until(
        lambda: [alert["state"] for alert in prometheus.alerts(alertname=UNREACHABLE)] == ["firing"] * 2,
        FIRES,
        "both alerts fire",
    )
    # One alert for each proxy, although two processes report it, and no other alert.
    alerts = {alert["labels"]["name"]: alert for alert in prometheus.alerts()}
    assert len(prometheus.alerts()) == 2
    for name in ("lima", "quito"):
        host = deployment.proxies[name].url.removeprefix("http://")
        assert alerts[name]["labels"] == {
            "alertname": UNREACHABLE,
            "severity": "warning",
            "job": JOB,
            "proxy_id": ids[name],
            "name": name,
            "host": host,
        }
        assert alerts[name]["annotations"] == {
            "summary": f"Proxy {name} is unreachable.",
            "description": f"The last probe of {host} got no valid response. "
            "It has been failing for more than two intervals. Reason: connect.",
            "runbook_url": f"docs/runbook.md#{UNREACHABLE.lower()}",
        }
    firing = {rule["name"]: len(rule["alerts"]) for rule in prometheus.rules() if rule.get("alerts")}
    assert firing == {UNREACHABLE: 2}

    deployment.proxies["lima"].start()
    wait_for_status(prometheus, ids["lima"], 1)
    prometheus.wait_until(
        lambda: not prometheus.alerts(proxy_id=ids["lima"]), SHOWN, "the alert of lima is resolved"
    )
    (left,) = prometheus.alerts()
    assert left["labels"]["name"] == "quito"
    assert left["state"] == "firing"

    deployment.post(f"{CHANGE}{ids['quito']}/delete/", post="yes")
    deleted = time.monotonic()
    prometheus.wait_until(
        lambda: not prometheus.query(f'{{proxy_id="{ids["quito"]}"}}'), SHOWN, "no series of quito is left"
    )
    gone = time.monotonic() - deleted
    assert prometheus.alerts() == []
    assert not prometheus.query('{name="quito"}')
    prometheus.wait_until(
        lambda: all(names_of(prometheus, ids[name]) == series[name] for name in ("lima", "oslo", "bergen")),
        SHOWN,
        "the other proxies have all their series",
    )
    quiet = time.time()
    wait_for(lambda: time.time() > quiet + 3 * STEP, 4 * STEP, "some more evaluations")
    assert not prometheus.query(f'{{proxy_id="{ids["quito"]}"}}')
    assert prometheus.alerts() == []

    # The history that Prometheus stored shows what it was in between, too.
    assert results(prometheus, ids["lima"]) == from_both(prometheus, [1, -2, 1])
    assert results(prometheus, ids["quito"]) == from_both(prometheus, [1, -2])
    for name in ("oslo", "bergen"):
        assert results(prometheus, ids[name]) == from_both(prometheus, [1])
        assert states(prometheus, ids[name]) == []
    for name in ("lima", "quito"):
        (fired,) = states(prometheus, ids[name])
        assert fired[0] == "firing"
        # After two more rounds that confirm the failure, and the time in place of a minute.
        assert fired[1] >= killed + 2 * INTERVAL + FOR
    prometheus.check()
    verdict(f"fires after {fired[1] - killed:.1f} s; a deleted proxy is gone after {gone:.1f} s")


def names_of(prometheus, proxy_id):
    """Return the names of all series of a proxy, also of recorded ones."""
    return sorted(sample.labels["__name__"] for sample in prometheus.query(f'{{proxy_id="{proxy_id}"}}'))


def empty(prometheus):
    """Return the names of the expressions without a value. Prometheus must accept every expression."""
    names = set()
    for name, expression in expressions({"job": JOB, "proxy": ".*", "__rate_interval": "5m"}).items():
        values = [sample.value for sample in prometheus.query(expression)]
        if all(isnan(value) for value in values):
            names.add(name)
    return names


@pytest.mark.fault("every expression, in Prometheus")
def test_expressions__data_or_expected_to_be_empty(observed, verdict):
    deployment, prometheus = observed("lima", "oslo")
    begin = time.time()
    save(deployment, "oslo", version="v2")

    prometheus.wait_until(
        lambda: empty(prometheus) == EMPTY,
        30,
        lambda: f"empty as expected, but for {sorted(empty(prometheus) ^ EMPTY)}",
    )

    # With a failing proxy, only the other alerts are empty.
    deployment.proxies["lima"].stop()
    prometheus.wait_until(
        lambda: [alert["state"] for alert in prometheus.alerts(name="lima")] == ["firing"],
        FIRES,
        "the alert fires",
    )
    others = {f"rules: {rule['alert']}" for rule in rules() if "alert" in rule} - {f"rules: {UNREACHABLE}"}
    prometheus.wait_until(
        lambda: empty(prometheus) <= others,
        SHOWN,
        lambda: f"not empty: {sorted(empty(prometheus) - others)}",
    )

    # No expression was an error at any time: Prometheus can draw a graph of each.
    moments = {"start": str(begin), "end": str(time.time()), "step": "1"}
    named = expressions({"job": JOB, "proxy": ".*", "__rate_interval": "5m"})
    for expression in named.values():
        prometheus.get("query_range", query=expression, **moments)
    prometheus.check()
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    verdict(f"{len(named)} expressions, {len(EMPTY_WHEN_HEALTHY)} may be empty, no error")


@pytest.mark.fault("two processes, in Prometheus")
def test_two_processes__same_series_from_each(observed, verdict):
    deployment, prometheus = observed("lima", "oslo", "quito", "cork")
    deployment.proxies["lima"].report_errors("something is wrong")
    deployment.proxies["oslo"].stop()
    save(deployment, "quito", version="v2")
    save(deployment, "cork", url="")
    expected = {"ok": 2, "unhealthy": 1, "unreachable": 1, "unregistered": 1, "unknown": 0}
    prometheus.wait_until(
        lambda: by(prometheus, "status", "proxyhealth_proxies") == from_both(prometheus, expected),
        SHOWN,
        "both targets have the statuses",
    )
    # Without beat there are no more rounds. Once the snapshot is stale, nothing can change any more.
    deployment.beat.kill()
    prometheus.wait_until(
        lambda: by(prometheus, "job", "proxyhealth_snapshot_stale") == from_both(prometheus, {JOB: 1}),
        3 * INTERVAL + SHOWN,
        "both targets show a stale snapshot",
    )
    stale = time.time()
    wait_for(lambda: time.time() > stale + 5 * STEP, 6 * STEP, "some more scrapes")
    series = {target: {} for target in prometheus.targets}
    for labels, samples in prometheus.history(OURS, f"{3 * STEP}s"):
        values = {value for _, value in samples}
        assert len(values) == 1, f"still changes: {labels} {samples}"
        series[labels.pop("instance")][tuple(sorted(labels.items()))] = values.pop()
    one, other = series.values()
    differ = {
        key: (one.get(key), other.get(key)) for key in one.keys() | other if one.get(key) != other.get(key)
    }
    assert not differ, f"the targets differ: {differ}"
    assert {PARTS.sub("", dict(labels)["__name__"]) for labels in one} == set(table_of("The series"))
    prometheus.check()
    verdict(f"{len(one)} series from each, no value differs")
