"""Custom resources against their definitions: types and unknown fields by the compiler, values by the validators."""

import json
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = {
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "cert-manager.io/v1": "@kubernetes-models/cert-manager/cert-manager.io/v1",
}


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder in which the definitions are found."""
    modules = HERE / "node_modules"
    assert modules.is_dir(), "the definitions are missing: run npm ci in tests/deploy"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return tmp_path


def problems(folder: Path, objects: list[dict]) -> str:
    """What a compiler says of a program that validates `objects`, and what that program says."""
    lines = []
    for index, thing in enumerate(objects):
        kind = thing["kind"]
        lines += [
            f'import {{ {kind} as M{index}, type I{kind} as I{index} }} from "{MODELS[thing["apiVersion"]]}";',
            f"const o{index}: I{index} = {json.dumps(thing)};",
            f"new M{index}(o{index}).validate();",
        ]
    (folder / "objects.ts").write_text("\n".join(lines))
    compiler = HERE / "node_modules" / ".bin" / "tsc"
    options = ["--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    said = ""
    for command in ([compiler, *options, "objects.ts"], ["node", "objects.js"]):
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said += told.stdout + told.stderr
        assert (told.returncode == 0) == (not told.stdout + told.stderr), said
    return said


def test_custom_resources_obey_their_definitions(production, workplace):
    custom = [thing for thing in production.objects if thing["apiVersion"] in MODELS]
    assert len(custom) == 17
    assert problems(workplace, custom) == ""


def test_what_is_wrong_is_found(workplace):
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "m"}}
    endpoint = {"interval": "3 s", "intervall": "3s"}
    found = problems(workplace, [monitor | {"spec": {"selector": {}, "endpoints": [endpoint]}}])
    assert "'\"intervall\"' does not exist" in found and "interval must match pattern" in found
