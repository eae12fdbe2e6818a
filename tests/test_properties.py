"""Properties that hold for any input."""

from __future__ import annotations

import json
import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxyhealth.exceptions import BadReport
from proxyhealth.report import HealthReport, clean
from proxyhealth.statuses import Reason
from proxyhealth.validators import parse_proxy_url
from tests.probing.fuzz import check_report

# The time to generate input is not part of the tests.
settings.register_profile(
    "tests",
    deadline=None,
    max_examples=200,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
texts = st.lists(st.text(max_size=1200), max_size=60)
labels = st.text(alphabet=string.ascii_letters + string.digits + "-", min_size=1, max_size=20)


@given(st.binary(max_size=500))
def test_parse__any_bytes_are_a_report_or_bad_report(body):
    try:
        check_report(HealthReport.parse(body))
    except BadReport as bad:
        assert bad.reason in (Reason.NOT_JSON, Reason.BAD_REPORT)


@given(json_values)
def test_parse__any_json_is_a_report_or_bad_report(value):
    try:
        check_report(HealthReport.parse(json.dumps(value).encode()))
    except BadReport as bad:
        assert bad.reason in (Reason.NOT_JSON, Reason.BAD_REPORT)


@given(texts, texts, st.dictionaries(st.text(min_size=9), json_values, max_size=3), st.booleans())
def test_parse__any_lists_of_strings_are_kept(errors, warnings, other, ascii_only):
    document = {**other, "errors": errors, "warnings": warnings}
    text = json.dumps(document, ensure_ascii=ascii_only, allow_nan=True)
    try:
        report = HealthReport.parse(text.encode("utf-8", "surrogatepass"))
    except BadReport as bad:
        assert bad.reason is Reason.NOT_JSON
        assert "NaN" in text or "Infinity" in text or not ascii_only
        return
    check_report(report)
    assert (bool(report.errors), bool(report.warnings)) == (bool(errors), bool(warnings))
    assert report == HealthReport.sanitized(errors, warnings)


@given(st.text())
def test_clean__is_idempotent(text):
    once = clean(text)
    assert clean(once) == once


@given(st.text(max_size=2000))
def test_parse_proxy_url__any_text_is_a_url_or_a_value_error(text):
    for url in (text, f"http://{text}", f"https://{text}:8443/"):
        try:
            parsed = parse_proxy_url(url)
        except ValueError as error:
            assert str(error)
        else:
            assert parse_proxy_url(parsed.base).netloc == parsed.netloc


@given(
    st.sampled_from(["http", "https", "HTTPS"]),
    st.lists(labels, min_size=1, max_size=4),
    st.none() | st.integers(1, 65535),
    st.sampled_from(["", "/"]),
)
def test_parse_proxy_url__parts_of_any_valid_url(scheme, labels, port, path):
    name = ".".join(labels)
    try:
        parsed = parse_proxy_url(f"{scheme}://{name}" + (f":{port}" if port else "") + path)
    except ValueError as error:
        # Labels that begin or end with a hyphen, and numbers that are not an address.
        assert "is not a" in str(error)
        return
    assert parsed.host == name.lower()
    assert parsed.scheme == scheme.lower()
    assert parsed.port == (port or {"http": 80, "https": 443}[scheme.lower()])
    assert parsed.base == f"{scheme.lower()}://{name.lower()}" + (f":{port}" if port else "")
