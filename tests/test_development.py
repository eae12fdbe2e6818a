"""The commands and the configuration for developers, compared with each other."""

import re
import runpy
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands():
    """Return the names of all commands of the Makefile."""
    names = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    return set(" ".join(names).replace("\\", "").split())


def test_make__without_a_command_lists_all():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    listed = re.findall(r"^make ((?:[a-z-]+ )+) +\S", done.stdout, re.MULTILINE)
    assert {name for names in listed for name in names.split()} == commands()


def test_pre_commit__runs_the_commands_of_ci():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"].removeprefix("make --no-print-directory ") for hook in repository["hooks"]]
    assert hooks == ["format", "lint", "types", "docs"]
    assert set(hooks) < commands()
    assert re.search(r"^test: lint types quick$", MAKEFILE, re.MULTILINE)


def test_nox__covers_every_python_and_django():
    pairs = {("3.11", "5.2"), *runpy.run_path(str(ROOT / "noxfile.py"))["COMMANDS"]}
    classifiers = PYPROJECT["project"]["classifiers"]
    pythons = {name.rpartition(" ")[2] for name in classifiers if re.search(r"Python :: 3\.\d+$", name)}
    djangos = {name.rpartition(" ")[2] for name in classifiers if re.search(r"Django :: \d", name)}
    # Django 6 needs Python 3.12.
    possible = {(a, b) for a in pythons for b in djangos if a >= "3.12" or b < "6"}
    assert pairs == possible


def test_ci__runs_the_tests_of_all_pairs():
    script = (ROOT / ".ci" / "run").read_text()
    lines = re.findall(r"^(?:make|\.venv/bin/nox)\b.*", script, re.MULTILINE)
    assert lines[:3] == ["make test PYTHON=python3.11", "make pages", ".venv/bin/nox"]
    assert {name for line in lines for name in line.split()[1:] if "=" not in name} <= commands()


def test_editorconfig__agrees_with_the_formatter():
    config = ConfigParser()
    config.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    assert int(config["*"]["max_line_length"]) == PYPROJECT["tool"]["ruff"]["line-length"]
    assert config["Makefile"]["indent_style"] == "tab"
