"""Each test has a deployment of its own. Each fault is one line of output; a failure adds all logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.deployment import Deployment
from tests.chaos.template import Template, make_template
from tests.support.ports import free_port

_WIDTH = 50
_deployments = pytest.StashKey[list[Deployment]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what): the fault that the test causes; its line begins with it")
    config.addinivalue_line("markers", "alone: needs the whole machine; no other test may run beside it")
    config.addinivalue_line("markers", "patient: mostly waits, and has no limit below ten seconds")


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Do nothing: each deployment has a Redis of its own."""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def deploy(
    request: pytest.FixtureRequest, tmp_path: Path, template: Template
) -> Iterator[Callable[..., Deployment]]:
    """``deploy(interval=4, workers=2)`` returns a deployment to be started; it ends with the test."""
    made = request.node.stash.setdefault(_deployments, [])
    with ExitStack() as stack:

        def make(**options: Any) -> Deployment:
            deployment = Deployment(tmp_path, template, **options)
            made.append(deployment)
            return stack.enter_context(deployment)

        yield make


@pytest.fixture
def postgresql() -> Iterator[Any]:
    """A PostgreSQL server if the environment has ``DATABASE=postgresql``, else None, for SQLite."""
    if os.environ.get("DATABASE", "sqlite") == "sqlite":
        yield None
        return
    from tests.support.postgresql import PostgresqlServer

    with PostgresqlServer(free_port()) as server:
        yield server


@pytest.fixture
def verdict(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``verdict("...")`` sets the result that the fault's line shows if the test passes."""
    return lambda text: request.node.user_properties.append(("verdict", text))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    marker = item.get_closest_marker("fault")
    if marker and call.when == "call":
        report.user_properties.append(("fault", marker.args[0].format(**_params(item))))
        if report.failed:
            for deployment in item.stash.get(_deployments, []):
                report.sections.extend(deployment.tails())
    return report


def _params(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, "callspec", None), "params", {})


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    # The fault's line already shows it, so pytest need not print a dot.
    if report.passed and report.when == "call" and _line(report):
        return "passed", "", ""
    return None


class Lines:
    """A pytest plugin that prints the line of each fault when its test ends."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = _line(report)
        if line:
            self._reporter.ensure_newline()
            self._reporter.write_line(line, red=report.failed)


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        session.config.pluginmanager.register(Lines(reporter))


def _line(report: pytest.TestReport) -> str:
    properties = dict(report.user_properties)
    if report.when != "call" or "fault" not in properties:
        return ""
    text = f"FAILED: {_error(report)}" if report.failed else str(properties.get("verdict", report.outcome))
    return f"{properties['fault']} {'.' * (_WIDTH - len(properties['fault']))} {text}"


def _error(report: pytest.TestReport) -> str:
    """Return the first line of the error; pytest prints all of it."""
    marked = [line[4:].strip() for line in report.longreprtext.splitlines() if line.startswith("E   ")]
    return marked[0].removeprefix("AssertionError: ")[:200] if marked else ""
