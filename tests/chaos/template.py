"""The environment of a deployment's processes, and a database to start from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.demo import ROOT, environment
from tests.support.site import PLAIN_SITE

_PREPARE = """
import django
django.setup()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
call_command("migrate", verbosity=0)
user = get_user_model().objects.create_superuser("operator", "", None)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(session.session_key)
"""


class Template(NamedTuple):
    """A migrated database, and the session of a superuser in it. Each deployment gets a copy."""

    database: Path
    session_key: str


def make_template(folder: Path) -> Template:
    database = folder / "template.sqlite3"
    env = project_environment(DATABASE_URL=f"sqlite:///{database}")
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Template(database, done.stdout.strip())


def project_environment(**values: Any) -> dict[str, str]:
    """Return the environment for processes of ``project/``, with these variables added."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    settings = {"DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "1", **PLAIN_SITE}
    return environment(**{**settings, "PYTHONUNBUFFERED": "1", "PATH": path, **values})
