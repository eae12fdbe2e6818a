"""The TypeScript types of the package: generated from the description, and usable by a strict client."""

import json
import re
import subprocess
import sys
from pathlib import Path

from proxyhealth.api.views import DESCRIPTION

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests" / "api" / "client.ts"
PICKER = CLIENT.with_name("picker.ts")
TYPES = DESCRIPTION.with_suffix(".d.ts")

# What to replace in the client, with what, and the error of the compiler.
WRONG_CLIENTS = [
    ("proxy.version.trim()", "proxy.versoin.trim()", "TS2551"),
    ("const latency: number | null =", "const latency: number =", "TS2322"),
    ('ok: "usable",', "", "TS2741"),
]


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


def test_types__accept_correct_clients():
    done = compile_strictly(CLIENT, PICKER)
    assert done.returncode == 0, done.stdout


def test_types__reject_wrong_clients(tmp_path):
    text = CLIENT.read_text()
    for right, wrong, error in WRONG_CLIENTS:
        assert right in text
        broken = text.replace(right, wrong).replace('"../../proxyhealth', f'"{ROOT}/proxyhealth')
        (tmp_path / f"{error}.ts").write_text(broken)
    # One run of the compiler for all of them, because it takes seconds to start.
    errors = compile_strictly(*tmp_path.iterdir()).stdout
    for _, _, error in WRONG_CLIENTS:
        assert re.search(rf"{error}\.ts\(\d+,\d+\): error {error}\b", errors), errors


def test_client__uses_every_field():
    text = CLIENT.read_text()
    schemas = json.loads(DESCRIPTION.read_bytes())["components"]["schemas"]
    for name, schema in schemas.items():
        assert re.search(rf"\b{name}\b", text), name
        for field in schema.get("properties", {}):
            assert re.search(rf"\.{field}\b|[{{,] {field}\b|\[\"{field}\"\]", text), f"{name}.{field}"
