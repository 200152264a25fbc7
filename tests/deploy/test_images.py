"""The Dockerfile, as far as it can be judged without building."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rendered import ROOT, image_name

DOCKERFILE = ROOT / "deploy" / "images" / "Dockerfile"
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    judged = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_every_image_of_the_manifests_has_a_target(overlay):
    for workload in overlay.workloads:
        for container in workload.containers:
            assert image_name(container["image"]).removeprefix("cosec-") in TARGETS, container["image"]


def test_images_run_as_the_user_of_the_manifests(overlay):
    (user,) = set(re.findall(r"^USER (\d+):\1$", DOCKERFILE.read_text(), re.MULTILINE))
    assert all(workload.pod["securityContext"]["runAsUser"] == int(user) for workload in overlay.workloads)


def test_images_start_what_the_manifests_expect(overlay):
    entries = set(re.findall(r'^ENTRYPOINT \["\S+/(\S+)"\]$', DOCKERFILE.read_text(), re.MULTILINE))
    assert {workload.program for workload in overlay.workloads if workload.program} <= entries


def dependencies(package: str) -> set[str]:
    """Names of all crates that `package` is built from."""
    told = subprocess.run(
        ["cargo", "tree", "--locked", "--package", package, "--edges", "normal,build", "--prefix", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.split()[0] for line in told.stdout.splitlines() if line.strip()}


@pytest.mark.parametrize(("package", "carries"), [("cosec-coordinator", False), ("cosec-worker", True)])
def test_only_workers_carry_candle(package, carries):
    assert ("candle-core" in dependencies(package)) == carries


def test_the_build_context_has_what_cargo_needs():
    """Every member of the workspace is in the context, and neither build outputs nor the models' training is."""
    context = (ROOT / ".dockerignore").read_text().splitlines()
    members = re.search(r"^members = \[(.*)\]$", (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    for member in re.findall(r'"([^"]+)"', members):
        assert f"!{member}" in context or f"!{member}/Cargo.toml" in context, member
    assert "*" in context and "!deploy" not in context and context[-1] == "**/target"
    assert all((ROOT / line[1:]).exists() for line in context if line.startswith("!")), context
