"""The TypeScript types of the package: generated from the description, and usable by a strict client."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxyhealth.api.views import DESCRIPTION

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests" / "api" / "client.ts"
TYPES = DESCRIPTION.with_suffix(".d.ts")


def node(tool, *arguments):
    """Run a tool that `make node_modules/.installed` has installed."""
    command = [Path(sys.executable).parent / "node", ROOT / "node_modules" / ".bin" / tool, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def compile_strictly(*files):
    options = ["--noEmit", "--strict", "--noUnusedLocals", "--target", "es2022", "--module", "esnext"]
    return node("tsc", *options, "--moduleResolution", "bundler", *files)


def test_types__are_generated_from_the_description(tmp_path):
    generated = tmp_path / "openapi.d.ts"
    recipe = re.search(r"openapi-typescript (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    arguments = recipe.replace(str(TYPES.relative_to(ROOT)), str(generated)).split()
    done = node("openapi-typescript", *arguments)
    assert done.returncode == 0, done.stderr
    assert generated.read_text() == TYPES.read_text(), "make api-types"


def test_types__accept_a_correct_client():
    done = compile_strictly(CLIENT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("proxy.version.trim()", "proxy.versoin.trim()", "TS2551"),
        ("const latency: number | null =", "const latency: number =", "TS2322"),
        ('ok: "usable",', "", "TS2741"),
    ],
)
def test_types__reject_a_wrong_client(tmp_path, right, wrong, error):
    text = CLIENT.read_text()
    assert right in text
    broken = tmp_path / "client.ts"
    broken.write_text(text.replace(right, wrong).replace('"../../proxyhealth', f'"{ROOT}/proxyhealth'))
    assert f"error {error}" in compile_strictly(broken).stdout


def test_client__uses_every_field():
    text = CLIENT.read_text()
    schemas = json.loads(DESCRIPTION.read_bytes())["components"]["schemas"]
    for name, schema in schemas.items():
        assert re.search(rf"\b{name}\b", text), name
        for field in schema.get("properties", {}):
            assert re.search(rf"\.{field}\b|[{{,] {field}\b", text), f"{name}.{field}"
