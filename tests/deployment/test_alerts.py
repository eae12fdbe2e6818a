"""The alerts, evaluated by Prometheus on the made-up series of tests/contrib."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "contrib"


@pytest.mark.parametrize("name", ["rules_test.yml", "rules_long_test.yml"])
def test_rules__fire_and_resolve_as_expected(promtool, name):
    assert "SUCCESS" in promtool("test", "rules", FOLDER / name)
