"""What a real Prometheus makes of it, with the shipped rules: two web processes, a worker and beat."""

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
SHOWN = INTERVAL + 2 * STEP + 10  # seconds until Prometheus has what a proxy does now, on a busy machine
FIRES = SHOWN + 2 * INTERVAL + FOR

CHANGE = "/admin/proxyhealth/workspaceproxy/"
UNREACHABLE = "ProxyhealthProxyUnreachable"
OURS = '{__name__=~"proxyhealth_.+"}'


@pytest.fixture
def observed(deploy, tmp_path):
    """``observed(*names)``: a deployment with these proxies, one of them over HTTPS, and its Prometheus."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    env = {
        "DEBUG": 0,
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "CA_BUNDLE": tmp_path / "ca.pem",
    }
    made = []

    def observe(*names):
        deployment = deploy(interval=INTERVAL, webs=2, env=env)
        for web in deployment.webs:
            web.command = GUNICORN
        for name in names:
            deployment.add(name)
        deployment.add("bergen", tls=server_context(authority, "127.0.0.1"))
        prometheus = Prometheus(tmp_path, [f"127.0.0.1:{port}" for port in deployment.web_ports])
        made.append(prometheus)
        deployment.others.append(prometheus.part)
        deployment.start()
        prometheus.start()
        return deployment, prometheus

    yield observe
    for prometheus in made:
        prometheus.close()


def save(deployment, name, /, **values):
    """As by the form in the admin, which has all values of a row."""
    row = deployment.row(name)
    form = {key: row[key] for key in ("name", "display_name", "icon", "url", "wildcard_hostname", "version")}
    deployment.post(f"{CHANGE}{row['id']}/change/", **{**form, **values})


def by(prometheus, label, selector):
    """What each target says now: its values, by one of the labels."""
    found = {}
    for sample in prometheus.query(selector):
        found.setdefault(sample.labels["instance"], {})[sample.labels[label]] = sample.value
    return found


def from_both(prometheus, said):
    """The same from each target."""
    return dict.fromkeys(prometheus.targets, said)


def wait_for_status(prometheus, proxy_id, number):
    selector = f'proxyhealth_health_check_results{{proxy_id="{proxy_id}"}}'
    expected = from_both(prometheus, {proxy_id: number})
    prometheus.wait_until(
        lambda: by(prometheus, "proxy_id", selector) == expected, SHOWN, f"both say {number} of {proxy_id}"
    )


def states(prometheus, proxy_id):
    """What the alert on a proxy was, one after the other: state, and Unix time of its first sample."""
    samples = [
        (at, labels["alertstate"])
        for labels, found in prometheus.history(f'ALERTS{{alertname="{UNREACHABLE}", proxy_id="{proxy_id}"}}')
        for at, _ in found
    ]
    spans = []
    for state, group in groupby(sorted(samples), key=lambda sample: sample[1]):
        spans.append((state, next(group)[0]))
    return spans


def told(prometheus, proxy_id):
    """For each target, the statuses of a proxy in their order, repetitions left out."""
    return {
        labels["instance"]: [value for value, _ in groupby(value for _, value in samples)]
        for labels, samples in prometheus.history(
            f'proxyhealth_health_check_results{{proxy_id="{proxy_id}"}}'
        )
    }


@pytest.mark.fault("proxies killed, under Prometheus")
def test_proxy_killed__an_alert_fires_until_it_is_back_or_deleted(observed, verdict):
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
    # One for each proxy, though two processes tell of it; and no other.
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
            "description": f"The last probe of {host} got no response. It has been failing for more than two "
            "intervals. Reason: connect.",
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
        "of the others there is all that there was",
    )
    quiet = time.time()
    wait_for(lambda: time.time() > quiet + 3 * STEP, 4 * STEP, "some more evaluations")
    assert not prometheus.query(f'{{proxy_id="{ids["quito"]}"}}')
    assert prometheus.alerts() == []

    # All this as Prometheus remembers it: what it looked like in between, too.
    assert told(prometheus, ids["lima"]) == from_both(prometheus, [1, -2, 1])
    assert told(prometheus, ids["quito"]) == from_both(prometheus, [1, -2])
    for name in ("oslo", "bergen"):
        assert told(prometheus, ids[name]) == from_both(prometheus, [1])
        assert states(prometheus, ids[name]) == []
    for name in ("lima", "quito"):
        (fired,) = states(prometheus, ids[name])
        assert fired[0] == "firing"
        # After the round that found it failing, the two after that, and what stands for a minute.
        assert fired[1] >= killed + 2 * INTERVAL + FOR
    prometheus.check()
    verdict(f"fires after {fired[1] - killed:.1f} s; of a deleted one all is gone after {gone:.1f} s")


def names_of(prometheus, proxy_id):
    """The names of all series of a proxy, recorded ones too."""
    return sorted(sample.labels["__name__"] for sample in prometheus.query(f'{{proxy_id="{proxy_id}"}}'))


def empty(prometheus):
    """Each expression that has no number to say; every one of them must be possible."""
    found = set()
    for name, expression in expressions({"job": JOB, "proxy": ".*", "__rate_interval": "5m"}).items():
        values = [sample.value for sample in prometheus.query(expression)]
        if all(isnan(value) for value in values):
            found.add(name)
    return found


@pytest.mark.fault("every expression, before Prometheus")
def test_expressions__each_has_data_or_is_known_to_be_empty(observed, verdict):
    deployment, prometheus = observed("lima", "oslo")
    begin = time.time()
    save(deployment, "oslo", version="v2")

    prometheus.wait_until(
        lambda: empty(prometheus) == EMPTY_WHEN_HEALTHY,
        30,
        lambda: f"empty as expected, but for {sorted(empty(prometheus) ^ EMPTY_WHEN_HEALTHY)}",
    )

    # With a proxy that fails, only alerts are left that are about something else.
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

    # And at no moment of all this is there one that is an error: a graph of it can be drawn.
    moments = {"start": str(begin), "end": str(time.time()), "step": "1"}
    found = expressions({"job": JOB, "proxy": ".*", "__rate_interval": "5m"})
    for expression in found.values():
        prometheus.ask("query_range", query=expression, **moments)
    prometheus.check()
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    verdict(f"{len(found)} expressions, {len(EMPTY_WHEN_HEALTHY)} of which may be empty, and no error")


@pytest.mark.fault("two processes, before Prometheus")
def test_two_processes__every_series_is_the_same_from_each(observed, verdict):
    deployment, prometheus = observed("lima", "oslo", "quito", "cork")
    deployment.proxies["lima"].report_errors("something is wrong")
    deployment.proxies["oslo"].stop()
    save(deployment, "quito", version="v2")
    save(deployment, "cork", url="")
    expected = {"ok": 2, "unhealthy": 1, "unreachable": 1, "unregistered": 1, "unknown": 0}
    prometheus.wait_until(
        lambda: by(prometheus, "status", "proxyhealth_proxies") == from_both(prometheus, expected),
        SHOWN,
        "both know the statuses",
    )
    # Nobody asks for rounds any more, and once the snapshot is stale there is nothing left that could change.
    deployment.beat.kill()
    prometheus.wait_until(
        lambda: by(prometheus, "job", "proxyhealth_snapshot_stale") == from_both(prometheus, {JOB: 1}),
        3 * INTERVAL + SHOWN,
        "the snapshot is stale for both",
    )
    stale = time.time()
    wait_for(lambda: time.time() > stale + 5 * STEP, 6 * STEP, "some more scrapes")
    found = {target: {} for target in prometheus.targets}
    for labels, samples in prometheus.history(OURS, f"{3 * STEP}s"):
        values = {value for _, value in samples}
        assert len(values) == 1, f"changes still: {labels} {samples}"
        found[labels.pop("instance")][tuple(sorted(labels.items()))] = values.pop()
    one, other = found.values()
    differ = {
        key: (one.get(key), other.get(key)) for key in one.keys() | other if one.get(key) != other.get(key)
    }
    assert not differ, f"not the same: {differ}"
    assert {PARTS.sub("", dict(labels)["__name__"]) for labels in one} == set(table_of("The series"))
    prometheus.check()
    verdict(f"{len(one)} series of each of them, and no value differs")
