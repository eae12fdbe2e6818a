"""Imports point down only: data flows from the models to the admin, never back."""

import ast
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "proxyhealth"

# What each module may import of the app. The order is that of the flow.
ALLOWED = {
    "validators": set(),
    "models": {"validators"},
    "conf": set(),
    "report": set(),
    "deadline": set(),
    "addresses": {"conf", "deadline"},
    "transport": {"addresses", "deadline"},
    "probe": {"addresses", "conf", "deadline", "report", "transport", "validators"},
    "rounds": {"conf", "models", "probe", "report", "validators"},
    "roster": {"conf", "models", "report", "rounds"},
    "cache": {"conf"},
    "document": {"conf", "report"},
    "coordination": {"cache", "conf", "report"},
    "look": {"cache", "coordination", "document", "report"},
    "store": {"cache", "conf", "coordination", "document", "look", "report"},
    "plan": {"report"},
    "broker": set(),
    "sending": {"broker", "cache", "coordination"},
    "running": {
        "cache",
        "conf",
        "coordination",
        "document",
        "plan",
        "report",
        "rounds",
        "sending",
        "store",
    },
    "tasks": {"cache", "conf", "coordination", "report", "rounds", "running"},
    "signals": {"models", "roster", "sending"},
    "health": {"models", "report", "rounds", "running", "sending", "store"},
    "representation": {"conf", "report"},
    "selection": {"report"},
    "listing": {"conf", "health", "report", "representation", "roster", "selection"},
    "access": {"conf"},
    "views": {"access", "conf", "health", "listing", "representation", "selection"},
    "urls": {"views"},
    "middleware": {"health", "report"},
    "proxyhealth": {"health", "models", "report"},  # the template tags
    "metrics": {"broker", "conf", "look", "report", "store"},
    "exporter": {"access", "conf", "metrics", "report"},
    "exporter_urls": {"exporter"},
    "admin": {"health", "models", "report"},
    "checks": {"conf", "exporter"},
    "apps": {"checks", "metrics", "signals", "tasks"},
}

MODULES = [path for path in APP.rglob("*.py") if "migrations" not in path.parts and path.stem != "__init__"]


def imports_of(path):
    """Every (module, name) that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(path):
    for module, name in imports_of(path):
        if module == "proxyhealth":
            if (APP / f"{name}.py").exists():
                yield name
        elif module.startswith("proxyhealth."):
            yield module.split(".")[1]


def users_of(package):
    return {
        path.stem for path in MODULES for module, _ in imports_of(path) if module.split(".")[0] == package
    }


def test_every_module_has_its_place():
    assert {path.stem for path in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down_only(path):
    assert set(own_imports(path)) <= ALLOWED[path.stem]


def test_the_order_itself_points_down():
    above = set()
    for module, allowed in ALLOWED.items():
        assert allowed <= above, module
        above.add(module)


def test_the_app_does_not_know_the_project():
    assert users_of("project") == set()
    assert users_of("tests") == set()


def test_only_the_probe_uses_requests():
    assert users_of("requests") == {"probe"}


def test_only_the_store_uses_the_cache():
    assert users_of("redis") == {"cache", "look", "store"}
    cache = {p.stem for p in MODULES for module, _ in imports_of(p) if module == "django.core.cache"}
    assert cache == {"cache"}


def test_report_is_pure_python():
    modules = {module.split(".")[0] for module, _ in imports_of(APP / "report.py")}
    assert not modules & {"django", "celery", "redis", "requests"}


def test_probe_threads_have_no_orm():
    for name in ("addresses", "deadline", "probe", "transport"):
        assert not [module for module, _ in imports_of(APP / f"{name}.py") if module.startswith("django.db")]
