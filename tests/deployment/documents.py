"""The steps of a document, executed as its reader does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.demo import environment

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# pip needs 20 seconds for a new environment, and uv two. Both leave an installed version that satisfies.
UV_INSTALL = f"{Path(sys.prefix) / 'bin' / 'uv'} pip install --quiet --system-certs"

# Commands that run until the reader stops them.
SERVERS = (
    "celery -A host worker",
    "celery -A host beat",
    "python manage.py runserver",
    "python -m http.server",
)


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Reader:
    """A reader with terminals. ``changes`` are texts that this machine needs otherwise, such as ports."""

    def __init__(self, folder, changes, **env):
        self.folder = folder
        self.changes = changes
        self.env = environment(PIP_NO_COMPILE=1, PIP_DISABLE_PIP_VERSION_CHECK=1, **env)
        self.log = folder / "processes.log"
        self._each_terminal = []  # what the reader enters first in every terminal
        self._processes = []

    def follow(self, text):
        """Write the files and enter the commands of a document, in its order."""
        for old, new in self.changes.items():
            assert old in text, f"the document has no {old!r}"
            text = text.replace(old, new)
        for language, block in re.findall(r"^```(python|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if language == "console":
                for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
                    self.enter(command)
            elif block.startswith("# host/"):
                name, _, code = block.removeprefix("# ").partition("\n")
                with (self.directory / name).open("a") as file:
                    file.write(code)

    @property
    def directory(self):
        """The directory of the reader's terminals."""
        names = [command.removeprefix("cd ") for command in self._each_terminal if command.startswith("cd ")]
        return self.folder.joinpath(*names)

    def enter(self, command):
        """Run a command, and return its output, or start it if it is a server."""
        if command.startswith(("cd ", ". ")):
            self._each_terminal.append(command)
            return ""
        command = command.replace("createsuperuser", "createsuperuser --noinput")
        shell = ["bash", "-c", " && ".join([*self._each_terminal, command])]
        if command.startswith(SERVERS):
            with self.log.open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        shell, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
                    )
                )
            return ""
        done = subprocess.run(
            shell, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=80, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def shell(self, code):
        """Run Python code in the shell of the project."""
        path = self.folder / "code.py"
        path.write_text(code)
        return self.enter(f"python manage.py shell -v0 < {path}").strip()

    def stop(self):
        for process in self._processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self._processes.clear()
