"""The commands of docs/deployment.md, and a shell that runs them with other paths and ports."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.demo import ROOT

TEXT = (ROOT / "docs" / "deployment.md").read_text()
_SECTION = re.compile(r"^#{1,3} (.+?)\n(.*?)(?=^###? |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(section: str) -> list[str]:
    """Return the commands in the console blocks of a section, each with its further lines."""
    found = []
    for block in _BLOCK.findall(dict(_SECTION.findall(TEXT))[section]):
        for line in block.splitlines():
            if line.startswith("# "):
                found.append(line[2:])
            elif found and found[-1].endswith("\\"):
                found[-1] += f"\n{line}"
    return found


def all_commands() -> dict[str, list[str]]:
    """Return the commands of each section that has some."""
    return {title: lines for title, _ in _SECTION.findall(TEXT) if (lines := commands(title))}


class Shell:
    """A bash that keeps its variables from one command to the next, as that of an operator does."""

    def __init__(self, folder: Path, env: Mapping[str, str], translate: Callable[[str], str]) -> None:
        self.began = time.monotonic()
        self.transcript = folder / "transcript.txt"
        self.executed: set[str] = set()
        self._translate = translate
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """Run a command as it is, and return its output. Fail if the command fails."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nstatus=$?; echo; echo end-of-command $status\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith("end-of-command "):
                break
            lines.append(line)
        output = "".join(lines)[:-1]
        with self.transcript.open("a") as transcript:
            transcript.write(f"[{time.monotonic() - self.began:.1f}] # {command}\n{output}")
        assert line == "end-of-command 0\n", f"{command}\n{output}{line}"
        return output

    def follow(self, section: str, skip: tuple[str, ...] = ()) -> str:
        """Run the commands of a section, except those that begin with ``skip``. Return what they print."""
        output = ""
        for command in commands(section):
            if not command.startswith(skip):
                output += self.run(self._translate(command))
                self.executed.add(command)
        return output

    def close(self) -> None:
        assert self._bash.stdin
        self._bash.stdin.close()
        self._bash.wait(10)
        if self._bash.stdout:
            self._bash.stdout.close()
