"""The tests on other versions of Python and Django. ``make test`` uses the oldest pair.

A session runs the commands of the Makefile that CI needs for its pair. To run others in its environment:
``.venv/bin/nox -s "tests(3.13-5.2)" -- coverage``. All pairs of a Python share one environment, which gets
the Django of the session: most of the time of a new one is the compilation of its packages.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox
from uv import find_uv_bin

# `make test` runs all tests on the oldest pair. These use most of Python, Django, and the database.
OF_DATABASE = (
    "tests/api tests/history tests/notifications tests/test_access.py tests/test_admin*.py "
    "tests/test_database*.py tests/test_health.py tests/test_labels.py tests/test_models.py "
    "tests/test_receivers.py tests/test_selectors.py tests/test_tasks.py tests/test_time_zones.py "
    "tests/test_unreadable_rows.py"
)
# On the other pairs, these use most of Django. They are few, so the start of more processes takes longer.
OF_DJANGO = (
    "WORKERS=2",
    (
        "TESTS=tests/notifications/test_mail.py tests/test_access.py tests/test_admin.py "
        "tests/test_checks.py tests/test_middleware.py tests/test_models.py"
    ),
)
COMMANDS = {
    ("3.13", "6.1"): (f"TESTS={OF_DATABASE} tests/probing",),
    ("3.12", "6.0"): (f"TESTS={OF_DATABASE}", "TEST_DATABASE=postgresql"),
    ("3.12", "5.2"): OF_DJANGO,
    ("3.12", "6.1"): OF_DJANGO,
    ("3.13", "5.2"): OF_DJANGO,
    ("3.13", "6.0"): OF_DJANGO,
}


@nox.session(venv_backend="none")
@nox.parametrize("python,django", list(COMMANDS), ids=list(map("-".join, COMMANDS)))
def tests(session: nox.Session, django: str) -> None:
    venv = Path(".nox", f"python-{session.python}").absolute()
    uv = find_uv_bin()
    if not (venv / "bin" / "python").exists():
        session.run(uv, "venv", "--quiet", "--no-python-downloads", f"--python={session.python}", str(venv))
    for name in ("requirements.txt", "requirements-dev.txt"):
        pins = re.sub(r"(?m)^django==.*", f"django=={django}.*", Path(name).read_text())
        # The latest release may refuse this Django. Then pip chooses an earlier one for its users, too.
        (venv / name).write_text(re.sub(r"(?m)^django-prometheus==.*", "django-prometheus", pins))
    python = str(venv / "bin" / "python")
    options = ("--python", python, "--system-certs", "--compile-bytecode")
    session.run(uv, "pip", "install", *options, "-r", str(venv / "requirements-dev.txt"))
    code = "import sys, django; print('%d.%d' % sys.version_info[:2], '%d.%d' % django.VERSION[:2])"
    found = tuple(str(session.run(python, "-c", code, silent=True)).split())
    if found != (session.python, django):
        session.error(f"The environment has Python and Django {found}.")
    for marker in (".installed", ".installed-dev"):  # of the Makefile
        (venv / marker).touch()
    session.run("make", f"VENV={venv}", *(session.posargs or ("quick", *COMMANDS[found])))
